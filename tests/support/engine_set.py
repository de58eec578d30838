"""The real engines that tests may use: a set that ``scripts/engines up`` started, or servers named by variables.

``CDRS_TEST_ENGINES=NAME`` says that the set of this name must be there, and that tests may do its members harm:
``scripts/test`` starts such a set. Without it the set ``default`` is used where it runs, and left unharmed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXPENDABLE = os.environ.get("CDRS_TEST_ENGINES", "")
SET = EXPENDABLE or "default"
"""Name of the set."""


class EngineSet:
    """One set, by its name, and by its folder where it is not among the others."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self._options = ["--set", name, *(["--data", str(folder)] if folder else [])]

    def __call__(self, verb: str, *words: str, timeout: float = 240) -> str:
        """Run a command of ``scripts/engines``; what it printed."""
        argv = [str(ROOT / "scripts/engines"), verb, *self._options, *words]
        run = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
        assert run.returncode in {0, 3}, f"{argv}: {run.returncode}\n{run.stdout}\n{run.stderr}"
        return run.stdout

    async def run(self, verb: str, *words: str) -> str:
        """The same, without stopping the loop."""
        return await asyncio.to_thread(self, verb, *words)

    def status(self, *, timeout: float = 60) -> Any:
        return json.loads(self("status", "--json", timeout=timeout))

    def url(self, engine: str) -> str:
        """What a setting of cdrs takes: of ``kafka``, ``hazelcast`` or ``mongo``."""
        return str(self.status()["settings"][VARIABLES[engine]])

    def member_at(self, port: int) -> str:
        return str(next(each["name"] for each in self.status()["members"] if each["port"] == port))

    def mend(self) -> None:
        """All are there, and found each other: members that were stopped together may have parted first."""
        for state, verb in (("paused", "resume"), ("down", "start")):
            if names := [each["name"] for each in self.status()["members"] if each["state"] == state]:
                self(verb, *names)
        began = time.monotonic()
        while not (status := self.status())["ready"]:
            assert time.monotonic() - began < 120, status["pending"]
            time.sleep(0.5)


VARIABLES = {"kafka": "CDRS_LOG__URL", "hazelcast": "CDRS_REGISTRY__URL", "mongo": "CDRS_STORE__URL"}
SHARED = EngineSet(SET)


@contextmanager
def expendable_set(engine: str, folder: Path) -> Generator[EngineSet]:
    """Three members of an engine that nobody else uses and that may be harmed; skips where engines are not wanted."""
    if EXPENDABLE:
        yield SHARED
        SHARED.mend()
        return
    engine_url(engine)
    own = EngineSet(f"test-{os.getpid()}", folder)
    try:
        own("up", "--only", engine)
        yield own
    finally:
        own("down", "--purge")


def expendable() -> EngineSet:
    """The set under test, to kill members of; skips where it is somebody's own."""
    if not EXPENDABLE:
        pytest.skip(f"does the servers harm: CDRS_TEST_ENGINES={SET} allows it, and scripts/test starts some for that")
    return SHARED


@cache
def engine_status() -> dict[str, Any]:
    """``scripts/engines status`` as the tests began; empty where there is no such set.

    On a busy machine a server may be late to answer, so one that runs but does not is asked again."""
    status: dict[str, Any] = {}
    for _ in range(5):
        try:
            status = SHARED.status(timeout=30)
        except (AssertionError, OSError, ValueError, subprocess.TimeoutExpired):
            return {}
        running = {each["name"].partition("-")[0] for each in status["members"] if each["state"] == "running"}
        if not running & set(status["pending"]):
            break
        time.sleep(1)
    return status


def engine_url(engine: str) -> str:
    """Where an engine is: what ``CDRS_TEST_KAFKA``, ``…_HAZELCAST`` or ``…_MONGO`` says, else of the set. Skips the
    test where there is none."""
    variable = f"CDRS_TEST_{engine.upper()}"
    if url := os.environ.get(variable, ""):
        return url
    status = engine_status()
    if not status or engine in status["pending"] or VARIABLES[engine] not in status["settings"]:
        _lacking(f"no {engine}: run `scripts/engines up`, or set {variable} to a URL")
    return str(status["settings"][VARIABLES[engine]])


def mongo_url() -> str:
    """The replica set under test; skips the test where there is none."""
    return engine_url("mongo")


def engine_urls() -> dict[str, str]:
    """The variables that point cdrs at the whole set; skips the test where it does not run."""
    status = engine_status()
    if not status or status["pending"]:
        _lacking("no set of engines is ready: run `scripts/engines up`")
    return dict(status["settings"])


def _lacking(reason: str) -> NoReturn:
    if EXPENDABLE:
        pytest.fail(f"{reason}; CDRS_TEST_ENGINES says that {SET!r} is there")
    pytest.skip(reason)
