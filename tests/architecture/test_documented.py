"""What users meet is documented: every error, every setting, every metric."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import CdrsError, all_errors
from shared.settings import setting_fields

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("error", list(all_errors()), ids=lambda error: error.problem)
def test_every_error_explains_itself(error: type[CdrsError]) -> None:
    assert error.__doc__ is not None
    assert error.__doc__.strip().endswith(".")
    assert "__doc__" in vars(error), "its own text, not its parent's"
    assert error.title
    assert not error.title.endswith(".")
    assert error.problem == error.problem.lower()
    assert 400 <= error.status <= 599


def test_problem_names_are_unique() -> None:
    names = [error.problem for error in all_errors()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("error", list(all_errors()), ids=lambda error: error.problem)
def test_every_error_is_in_the_interface_description(error: type[CdrsError]) -> None:
    text = (ROOT / "docs/http-api.md").read_text(encoding="utf-8")
    assert f"`{error.problem}`" in text


@pytest.mark.parametrize("path", list(setting_fields()))
def test_every_setting_is_in_the_reference(path: str) -> None:
    assert f"| `{path}` |" in (ROOT / "docs/settings.md").read_text(encoding="utf-8")
