"""Every case of the fault catalogue is named with what tests it, and that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from faults.nemesis import FAULTS

TESTS = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| (F\d+(?:, F\d+)*) (.+?) \| (.+) \|$", re.MULTILINE)
NAMED = re.compile(r"`(\w+/test_\w+\.py)(?:::(\w+))?`")
ROWS = {
    case: where
    for cases, _, where in ROW.findall((TESTS / "fault" / "README.md").read_text())
    for case in cases.split(", ")
}


def test_all_are_there() -> None:
    assert list(ROWS) == [f"F{number}" for number in range(1, 46)]


def test_all_that_can_be_injected_are_said_to_be() -> None:
    assert {name for name in FAULTS if "suite" not in ROWS[name]} == set()


@pytest.mark.parametrize("case", ROWS)
def test_what_tests_it_exists(case: str) -> None:
    where = ROWS[case]
    for path, name in NAMED.findall(where):
        text = (TESTS / path).read_text()
        assert not name or re.search(rf"def {name}\(", text), f"{path} has no {name}"
    is_reasoned = "does not apply" in where or "not yet" in where or "`scripts/" in where
    assert NAMED.search(where) or is_reasoned or re.search(r"\b(suite|simulation|F\d+)\b", where), where
