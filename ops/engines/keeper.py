"""A keeper for mongods under wine, which may hang (they run, accept, and never answer) or end by themselves.

What a health check with a restart does elsewhere. A native mongod has no keeper: there, silence would be worth knowing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ops.engines.errors import EngineError
from ops.engines.mongo_wire import MongoError, command
from ops.engines.processes import MARK, Process, Running
from ops.engines.state import State, load, try_lock

LOCK = "keeper.lock"
LOG = "keeper.log"
_PATIENCE = 12.0
"""Seconds without an answer: on two busy cores one that is well has been seen to take six."""
_ANSWER = 2.0
_POLL = 1.0
_LONGEST_PAUSE = 60.0
"""Seconds between attempts at what cannot be started, reached by doubling."""


def is_mute(running: Running) -> bool:
    """It accepts a connection and gives no answer. One that refuses (it starts, or recovers) is not mute."""
    try:
        command(running.member.port, {"hello": 1, "$db": "admin"}, timeout=_ANSWER)
    except TimeoutError:
        return True
    except (OSError, MongoError):
        return False
    return False


def is_lost(running: Running) -> bool:
    """It has ended, or is mute."""
    return not running.process.is_alive() or (not running.process.is_paused() and is_mute(running))


class Watch:
    """Since when each process has been mute."""

    def __init__(self, mute: Callable[[Running], bool] = is_mute, clock: Callable[[], float] = time.monotonic) -> None:
        self._mute = mute
        self._clock = clock
        self._since: dict[Process, float] = {}

    def hung(self, awake: Sequence[Running]) -> list[Running]:
        """Those of the running, not paused members that have been mute at every look for longer than one can wait."""
        since = {each.process: self._since.get(each.process, self._clock()) for each in awake if self._mute(each)}
        self._since = since
        now = self._clock()
        return [each for each in awake if each.process in since and now - since[each.process] > _PATIENCE]


def keep(folder: Path, replace: Callable[[list[Running]], list[Running]]) -> None:
    """Replace hung members of the set, and those that have ended unasked, until it is gone. At once done when somebody
    keeps it already."""
    lock = try_lock(folder / LOCK)
    if lock is None:
        return
    watch = Watch()
    pause, next_attempt = _POLL, 0.0
    while (state := load(folder)) is not None:
        if time.monotonic() >= next_attempt:
            pause = _POLL if _attend(state, watch, replace) else min(pause * 2, _LONGEST_PAUSE)
            next_attempt = time.monotonic() + pause
        time.sleep(_POLL)


def _attend(state: State, watch: Watch, replace: Callable[[list[Running]], list[Running]]) -> bool:
    """Replace what is lost now; False where that failed."""
    mongods = [each for each in state.running.values() if each.member.engine == "mongo"]
    lost = {
        "hung": watch.hung(state.awake("mongo")),
        "ended": [each for each in mongods if not each.process.is_alive()],
    }
    well = True
    for how, some in lost.items():
        if some:
            try:
                names = ", ".join(each.member.name for each in replace(some))
                print(f"{time.strftime('%T')} {how}: {names or 'somebody else has looked after it'}", flush=True)
            except (EngineError, OSError) as error:  # another command had it for long, or a port is not free yet
                print(error, flush=True)
                well = False
    return well


def start(folder: Path, name: str, cache: Path) -> None:
    """Start the keeper of a set, to end with the set."""
    options = ["--set", name, "--data", str(folder), "--cache", str(cache)]
    with (folder / LOG).open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "ops.engines", "keep", *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, MARK: str(folder)},
            start_new_session=True,
        )
    child.returncode = 0  # it outlives this program, and nobody waits for it
