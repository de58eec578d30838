"""Marks the tests that use the engines: those of files whose imports reach `engine_set`.

Some of them kill the servers that all of them share, so they run one after the other, in one process; all others can
run beside them.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

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
