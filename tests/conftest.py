"""Marks the tests that use the engines: those of files whose imports reach `engine_set`. And chooses the write path.

Some of the former kill the servers that all of them share, so they run one after the other, in one process; all others
can run beside them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from cdrs_process import WRITE_PATHS, CdrsProcess

TESTS = Path(__file__).parent
SUPPORT = TESTS / "support"


@cache
def _imported(path: Path) -> frozenset[Path]:
    """The helpers in ``tests/support`` that a file imports, be it within a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return frozenset(found for name in names if (found := SUPPORT / f"{name.replace('.', '/')}.py").is_file())


@cache
def uses_engines(path: Path) -> bool:
    """Whether a test file, or a ``conftest.py`` that serves it, reaches `engine_set`."""
    served_by = [folder / "conftest.py" for folder in path.parents if TESTS in folder.parents]
    waiting = [path, *(each for each in served_by if each.is_file())]
    seen: set[Path] = set()
    while waiting:
        found = waiting.pop()
        if found not in seen:
            seen.add(found)
            waiting += _imported(found)
    return SUPPORT / "engine_set.py" in seen


def pytest_itemcollected(item: pytest.Item) -> None:
    if uses_engines(item.path):
        item.add_marker("engines")


@pytest.fixture(scope="module", params=WRITE_PATHS)
def write_path(request: pytest.FixtureRequest) -> Iterator[str]:
    """How gateways put streams to their readers. Processes get it by themselves, other servers are given it."""
    path: str = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CdrsProcess, "write_path", path)
        yield path
