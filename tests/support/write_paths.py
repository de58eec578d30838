"""Which tests run on which write path: marks for those that put streams to readers and do not take the fixture
`write_path` by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., Any])

each_path = pytest.mark.usefixtures("write_path")

_PORTABLE_IS_SLOW = pytest.mark.parametrize(
    "write_path", ["fast", pytest.param("portable", marks=pytest.mark.slow)], indirect=True
)


def portable_slow(test: Test) -> Test:
    """On each, too; the second run of a long test is among the slow ones."""
    return each_path(_PORTABLE_IS_SLOW(test))
