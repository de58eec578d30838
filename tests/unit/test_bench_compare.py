"""What `scripts/bench compare` calls a regression."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "ops" / "bench" / "compare.py"
spec = importlib.util.spec_from_file_location("bench_compare", SOURCE)
assert spec is not None
assert spec.loader is not None
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)

THEN = {
    "commit": "abc",
    "figures": {"cdrs": {"us": 15.0, "kib": 2.0, "noise": -1.0}, "F": {"us": 10.0}, "B0": {"kib": 40.0}},
}


@pytest.mark.parametrize(
    ("now", "worse"),
    [
        # The whole machine was slower.
        ({"cdrs": {"us": 30.0, "kib": 2.0}, "F": {"us": 20.0}, "B0": {"kib": 40.0}}, 0),
        ({"cdrs": {"us": 20.0, "kib": 2.0}, "F": {"us": 10.0}, "B0": {"kib": 40.0}}, 1),
        ({"cdrs": {"us": 15.0, "kib": 4.0}, "F": {"us": 10.0}, "B0": {"kib": 40.0}}, 1),
        ({"cdrs": {"us": 9.0, "noise": 3.0}, "F": {"us": 10.0}}, 0),
        ({"cdrs": {"us": 9.0, "new": 4.0}, "F": {"us": 10.0}}, 0),
    ],
)
def test_ratios_to_the_baseline_of_the_same_run_are_compared(now: dict[str, dict[str, float]], worse: int) -> None:
    lines = list(compare.compared("s2", now, THEN))
    assert sum(is_worse for _, is_worse in lines) == worse, lines
    assert all("new" not in line for line, _ in lines)


def test_without_figures_there_is_nothing_to_be_worse_than() -> None:
    ((line, is_worse),) = compare.compared("s2", {"cdrs": {"us": 1.0}}, None)
    assert "nothing" in line
    assert not is_worse
