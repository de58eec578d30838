"""What `scripts/bench compare` calls a regression, and what it does not compare."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "ops" / "bench" / "compare.py"
spec = importlib.util.spec_from_file_location("bench_compare", SOURCE)
assert spec is not None
assert spec.loader is not None
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)

Figures = dict[str, dict[str, float]]

THEN = {
    "commit": "abc",
    "figures": {"cdrs": {"us": 15.0, "kib": 2.0, "noise": -1.0}, "F": {"us": 10.0}, "B0": {"kib": 40.0}},
}


def lines(now: Figures, then: Figures, *, now_full: list[str] | None = None, then_full: list[str] | None = None) -> Any:
    """What is said of two runs, and which of it tells of a regression."""
    runs = [
        {"commit": "abc", "figures": figures} | ({} if full is None else {"saturated": full})
        for figures, full in ((now, now_full), (then, then_full))
    ]
    return list(compare.compared("s", *runs))


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
def test_ratios_to_the_baseline_of_the_same_run_are_compared(now: Figures, worse: int) -> None:
    told = list(compare.compared("s2", {"figures": now}, THEN))
    assert sum(is_worse for _, is_worse in told) == worse, told
    assert all("new" not in line for line, _ in told)


def test_without_figures_there_is_nothing_to_be_worse_than() -> None:
    ((line, is_worse),) = compare.compared("s2", {"figures": {"cdrs": {"us": 1.0}}}, None)
    assert "nothing" in line
    assert not is_worse


def test_a_run_without_the_baseline_of_the_last_one_is_not_worse() -> None:
    """A kept run with --peers has nchan, one without them has not."""
    then = {"cdrs": {"us, one a POST": 1.2}, "nchan": {"us, one a POST": 20.0}}
    ((line, is_worse),) = lines({"cdrs": {"us, one a POST": 1.2}}, then)
    assert line.endswith("not comparable: no common baseline")
    assert not is_worse


@pytest.mark.parametrize(("b0", "worse"), [(80.0, False), (40.0, True)])
def test_the_first_baseline_that_both_runs_have_is_the_unit(b0: float, worse: bool) -> None:
    then = {"cdrs": {"us": 10.0}, "nchan": {"us": 5.0}, "B0": {"us": 40.0}}
    ((line, is_worse),) = lines({"cdrs": {"us": 20.0}, "F": {"us": 1.0}, "B0": {"us": b0}}, then)
    assert " x B0" in line
    assert is_worse is worse


@pytest.mark.parametrize("figure", ["KiB", "MiB", "p99_ms"])
def test_raw_figures_of_two_machines_are_not_compared(figure: str) -> None:
    ((line, is_worse),) = lines({"cdrs": {figure: 900.0}}, {"cdrs": {figure: 1.0}})
    assert "not comparable" in line
    assert not is_worse


@pytest.mark.parametrize("figure", ["p99 ratio", "last third / first"])
def test_quotients_of_one_run_are_their_own_unit(figure: str) -> None:
    ((_, is_worse),) = lines({"cdrs": {figure: 1.5}}, {"cdrs": {figure: 1.0}})
    assert is_worse
    ((_, is_worse),) = lines({"cdrs": {figure: 1.1}}, {"cdrs": {figure: 1.0}})
    assert not is_worse


def test_figures_of_a_saturated_server_are_not_compared() -> None:
    """Whether the run says so, or it is an old one that had waited for seconds."""
    quiet = {"cdrs": {"p99_ms": 20.0, "us/delivery": 30.0}, "B0": {"p99_ms": 30.0, "us/delivery": 30.0}}
    slow = {"cdrs": {"p99_ms": 10_450.0, "us/delivery": 80.0}, "B0": {"p99_ms": 90.0, "us/delivery": 30.0}}
    said_so = lines(quiet, quiet, then_full=["cdrs"])
    for told in (lines(slow, quiet), lines(quiet, slow), said_so):
        assert [line.rpartition(": ")[2] for line, _ in told] == ["the server was saturated"] * 2
        assert not any(is_worse for _, is_worse in told)
    assert "B0 was saturated" in lines(quiet, quiet, now_full=["B0"])[0][0]
    assert "as it was" in lines(quiet, quiet, now_full=[], then_full=[])[0][0]


def test_a_saturated_baseline_gives_way_to_another_one() -> None:
    run = {"cdrs": {"p99_ms": 20.0}, "F": {"p99_ms": 2.0}, "B0": {"p99_ms": 2_000.0}}
    ((line, _),) = lines(run, run)
    assert "x F" in line


def test_instructions_are_preferred_to_time_where_both_runs_have_them() -> None:
    def figures(us: float, counted: float | None, floor: float | None = 1_000.0) -> Figures:
        found: Figures = {"cdrs": {"us/delivery, 50": us}, "F": {"us/delivery, 50": 10.0}}
        for server, value in (("cdrs", counted), ("F", floor)):
            if value is not None:
                found[server]["instructions/delivery, 50"] = value
        return found

    ((line, is_worse),) = lines(figures(30.0, 1_500.0), figures(15.0, 1_500.0))
    assert "instructions" in line
    assert not is_worse
    for now, then in (
        (figures(30.0, 1_500.0), figures(15.0, None, None)),
        (figures(30.0, None, None), figures(15.0, 1_500.0)),
    ):
        ((line, is_worse),) = lines(now, then)
        assert "us/delivery" in line
        assert is_worse
