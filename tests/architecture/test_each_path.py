"""Tests that put streams to readers do it on each write path."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
READERS = {"BodyReader", "Browser", "Follower", "LedgerLoad", "Story", "Subscriber", "WebDriver", "following"}
"""Whoever uses one of these reads streams."""
CHOOSES = {"each_path", "portable_slow", "write_path"}
ON_ONE_ALONE = {
    "test_no_circles.py": "what sse-starlette makes for a stream is in circles of its own",
    "test_sse_socket.py": "tests the reader itself, without a server",
}


def names_in(node: ast.AST) -> Iterator[str]:
    """Everything that it refers to: names, and fixtures by its parameters."""
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            yield each.id
        elif isinstance(each, ast.arg):
            yield each.arg


def reached(name: str, parts: dict[str, set[str]]) -> set[str]:
    """What a function of a module refers to, itself or by what else the module defines."""
    waiting, seen = [name], set[str]()
    while waiting:
        found = waiting.pop()
        if found not in seen:
            seen.add(found)
            waiting += parts.get(found, ())
    return seen


def one_path_only(path: Path) -> list[str]:
    """Tests of a file that read streams and leave open on which path."""
    parts: dict[str, set[str]] = {}
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            parts[node.name] = set(names_in(node))
    reaches = {name: reached(name, parts) for name in parts if name.startswith("test_")}
    return [name for name, found in reaches.items() if found & READERS and not found & CHOOSES]


FILES = [path for tier in ("browser", "fault", "integration") for path in sorted((TESTS / tier).glob("test_*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_who_reads_streams_reads_them_on_each(path: Path) -> None:
    found = one_path_only(path)
    assert bool(found) is (path.name in ON_ONE_ALONE), found
