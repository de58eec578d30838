"""Which tests may run beside each other: ``scripts/test`` has two processes (pytest-xdist, ``--dist loadgroup``).

Tests share one set of engines, and some of them kill its members; so whatever uses engines runs in one process, one
after the other. Of all others, those of one file stay together.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

_SUPPORT = Path(__file__).parent / "support"
_IMPORT = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist writes the groups into the names
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group_of(item.path)))


@cache
def _group_of(path: Path) -> str:
    sources = [path, path.with_name("conftest.py")]
    needs = {name for source in sources if source.exists() for name in _needs(source)}
    return "engines" if "engine_set" in needs else f"{path.parent.name}-{path.stem}"


@cache
def _needs(path: Path) -> frozenset[str]:
    """The modules in ``tests/support`` that a file is made of."""
    named = set(_IMPORT.findall(path.read_text(encoding="utf-8")))
    there = {name for name in named if (_SUPPORT / f"{name}.py").exists()}
    return frozenset(there).union(*[_needs(_SUPPORT / f"{name}.py") for name in there])
