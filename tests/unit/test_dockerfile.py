"""The reader of Dockerfiles that checks ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.docker.dockerfile import (
    DockerfileError,
    Instruction,
    expand,
    ignore_patterns,
    instructions,
    is_ignored,
    options,
    pairs,
    seconds,
    stages,
)

TEXT = """\
# a comment
ARG BASE=python:3

FROM ${BASE} AS build
RUN one \\
    && two
FROM ${BASE}
ENV A=1 \\
    # a comment in between
    B="two words"
CMD ["up"]
"""


def test_stages_and_continued_lines() -> None:
    first, second = stages(TEXT)
    assert (first.name, first.base, second.name, second.base) == ("build", "python:3", "1", "python:3")
    assert first.steps == [Instruction("RUN", "one && two", 5)]
    assert pairs(second.steps[0]) == [("A", "1"), ("B", "two words")]
    assert second.steps[1].words() == ["up"]
    assert first.steps[0].words() == ["/bin/sh", "-c", "one && two"]


def test_arguments_replace_defaults() -> None:
    assert [stage.base for stage in stages(TEXT, {"BASE": "python:4"})] == ["python:4", "python:4"]


@pytest.mark.parametrize("text", ["ADD x y", "FROM a AS", "RUN x", "RUN x \\"])
def test_what_it_does_not_know_is_an_error(text: str) -> None:
    with pytest.raises(DockerfileError):
        stages(text)


def test_variables() -> None:
    assert expand("$A/${B}:$C", {"A": "x", "B": "y"}) == "x/y:"


def test_options_and_durations() -> None:
    assert options("--interval=10s --retries=3 CMD x --a=b") == ({"interval": "10s", "retries": "3"}, "CMD x --a=b")
    assert [seconds(text) for text in ("10s", "500ms", "2m", "2.5s")] == [10.0, 0.5, 120.0, 2.5]
    with pytest.raises(DockerfileError):
        seconds("soon")


def test_nothing_is_left_open() -> None:
    assert instructions("# only a comment\n\n") == []


@pytest.mark.parametrize(
    ("path", "ignored"),
    [("a.py", True), ("kept/a.py", False), ("kept/b/c.py", False), ("kept/__pycache__/a.pyc", True), ("x/kept", True)],
)
def test_the_last_pattern_that_fits_decides(path: str, ignored: bool) -> None:
    patterns = ignore_patterns("# all\n*\n!kept\n\n**/__pycache__\n")
    assert is_ignored(Path(path), patterns) is ignored
