"""Reads a Dockerfile and a .dockerignore: as much of them as this project's own use, and an error for the rest."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

KNOWN = frozenset(
    "ARG FROM ENV WORKDIR RUN COPY LABEL USER EXPOSE STOPSIGNAL HEALTHCHECK ENTRYPOINT CMD".split()  # noqa: SIM905
)


class DockerfileError(Exception):
    """Something that this reader does not know, with its line."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; continued lines are joined."""

    name: str
    value: str
    line: int

    def words(self) -> list[str]:
        """An exec form's list, or a shell form as the command line it is."""
        if self.value.startswith("["):
            words: list[str] = json.loads(self.value)
            return words
        return ["/bin/sh", "-c", self.value]


@dataclass(slots=True)
class Stage:
    """What one FROM starts."""

    name: str
    base: str
    steps: list[Instruction] = field(default_factory=list[Instruction])


def instructions(text: str) -> list[Instruction]:
    """All instructions in order. Raises `DockerfileError`."""
    found: list[Instruction] = []
    pending, began = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not pending):
            continue
        began = began or number
        if line.rstrip().endswith("\\"):
            pending += line.rstrip()[:-1].strip() + " "
            continue
        name, _, value = (pending + line.strip()).partition(" ")
        if name not in KNOWN:
            raise DockerfileError(f"line {began}: {name} is not understood here")
        found.append(Instruction(name, value.strip(), began))
        pending, began = "", 0
    if pending:
        raise DockerfileError(f"line {began}: it never ends")
    return found


def stages(text: str, arguments: Mapping[str, str] | None = None) -> list[Stage]:
    """The stages, each with its steps. ``arguments`` are those of ``docker build --build-arg``."""
    given = dict(arguments or {})
    before: dict[str, str] = {}
    found: list[Stage] = []
    for step in instructions(text):
        if step.name == "FROM":
            words = expand(step.value, {**before, **given}).split()
            if len(words) not in {1, 3} or (len(words) == 3 and words[1].upper() != "AS"):
                raise DockerfileError(f"line {step.line}: FROM {step.value}")
            found.append(Stage(words[2] if len(words) == 3 else str(len(found)), words[0]))
        elif found:
            found[-1].steps.append(step)
        elif step.name == "ARG":
            name, _, default = step.value.partition("=")
            before[name] = default
        else:
            raise DockerfileError(f"line {step.line}: {step.name} before the first FROM")
    return found


def expand(text: str, values: Mapping[str, str]) -> str:
    """Put variables in: ``$NAME`` and ``${NAME}``; one that is not set is empty."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: values.get(match[1] or match[2], ""), text)


def pairs(step: Instruction) -> list[tuple[str, str]]:
    """``name=value …`` of ENV, LABEL and ARG; an ARG may be without a value."""
    return [(name, value) for name, _, value in (word.partition("=") for word in shlex.split(step.value))]


def options(value: str) -> tuple[dict[str, str], str]:
    """The leading ``--name=value`` of an instruction, and the rest."""
    found: dict[str, str] = {}
    while match := re.match(r"--([\w-]+)=(\S+)\s+", value):
        found[match[1]] = match[2]
        value = value[match.end() :]
    return found, value


def seconds(text: str) -> float:
    """A duration such as 10s or 500ms."""
    match = re.fullmatch(r"([0-9.]+)(ms|s|m)", text)
    if match is None:
        raise DockerfileError(f"{text} is no duration known here")
    return float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0}[match[2]]


def ignore_patterns(text: str) -> list[str]:
    """The lines of a .dockerignore that say something."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def is_ignored(path: Path, patterns: Sequence[str]) -> bool:
    """Whether a file, named from the context's folder, stays out of the build: the last pattern that fits decides."""
    ignored = False
    parents = [path, *(parent for parent in path.parents if parent != Path())]
    for pattern in patterns:
        wanted = pattern.removeprefix("!").strip("/")
        if any(_fits(parent, wanted) for parent in parents):
            ignored = not pattern.startswith("!")
    return ignored


def _fits(path: Path, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatchcase(path.name, pattern[3:])
    return len(path.parts) == pattern.count("/") + 1 and fnmatchcase(path.as_posix(), pattern)
