"""What a set remembers between two commands: ``state.json`` in its folder, changed by one command at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.engines.config import EngineSet, Member
from ops.engines.errors import EngineError
from ops.engines.processes import Process, Running, boot_id

_VERSION = 1
_LOCK_WAIT = 180.0
FILE = "state.json"


@dataclass(slots=True)
class State:
    """A set and its processes."""

    engines: EngineSet
    kafka_cluster: str
    mongod: str = ""
    """``native`` or ``wine``: whose data folders these are."""
    running: dict[str, Running] = field(default_factory=dict[str, Running])
    """Started and not known to have ended: ask each process."""

    def alive(self, engine: str | None = None) -> list[Running]:
        """Members whose process is there, paused ones included."""
        return [
            self.running[member.name]
            for member in self.engines.members(engine)
            if member.name in self.running and self.running[member.name].process.is_alive()
        ]

    def awake(self, engine: str | None = None) -> list[Running]:
        """Members whose process is there and not paused."""
        return [each for each in self.alive(engine) if not each.process.is_paused()]

    def stopped(self, engine: str) -> list[Member]:
        """Members of an engine that have no process."""
        alive = {each.member.name for each in self.alive(engine)}
        return [member for member in self.engines.members(engine) if member.name not in alive]

    def save(self) -> None:
        """Write it so that a reader sees the old or the new one."""
        engines = self.engines
        tree = {
            "version": _VERSION,
            "set": engines.name,
            "base_port": engines.base_port,
            "engines": engines.engines,
            "kafka_cluster": self.kafka_cluster,
            "mongod": self.mongod,
            "boot": boot_id(),
            "members": {
                name: {"pid": each.process.pid, "started": each.process.started, "log_from": each.log_from}
                for name, each in sorted(self.running.items())
            },
        }
        new = engines.folder / (FILE + ".new")
        new.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
        new.replace(engines.folder / FILE)


def load(folder: Path) -> State | None:
    """The set in this folder; None when there is none."""
    try:
        tree: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EngineError(f"{folder / FILE} cannot be read: {error}") from error
    if tree.get("version") != _VERSION:
        raise EngineError(f"{folder / FILE} is of another version of this tool; stop its processes and remove {folder}")
    engines = EngineSet(name=tree["set"], folder=folder, base_port=tree["base_port"], engines=tuple(tree["engines"]))
    state = State(engines, tree["kafka_cluster"], tree["mongod"])
    if tree["boot"] == boot_id():
        for name, each in tree["members"].items():
            process = Process(each["pid"], each["started"])
            state.running[name] = Running(engines.member(name), process, each["log_from"])
    return state


@contextlib.contextmanager
def locked(file: Path) -> Generator[None]:
    """Hold a lock file. Waits for another holder, but not for ever: `EngineError`."""
    deadline, told = time.monotonic() + _LOCK_WAIT, False
    while (handle := try_lock(file)) is None:
        if not told:
            print(f"waiting for another command, which holds {file}", file=sys.stderr, flush=True)
            told = True
        if time.monotonic() > deadline:
            raise EngineError(f"another command has held {file} for {_LOCK_WAIT:.0f} s")
        time.sleep(0.1)
    try:
        yield
    finally:
        os.close(handle)


def try_lock(file: Path) -> int | None:
    """Take a lock file, for as long as the descriptor is open; None when another holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A lock on a file that its holder has removed meanwhile keeps nobody out.
        if file.stat().st_ino == os.fstat(handle).st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(handle)
    return None
