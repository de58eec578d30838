"""The test's side of failpoints: arms a step and sees who has reached it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from failpoints.site.failpoint_hook import FOLDER, STEPS

SITE = Path(__file__).with_name("site")
CLAIMED_WITHIN = 5.0
"""Seconds for a process that has taken a step's file away to leave its mark."""


class Hit(NamedTuple):
    """A process that ended itself at a step."""

    pid: int
    t: int
    """When, on the machine's monotonic clock, in nanoseconds."""


class Failpoints:
    """The steps of the processes that were started with `env`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    @property
    def env(self) -> Mapping[str, str]:
        """What a process must be started with to be reached by `arm`."""
        return {"PYTHONPATH": str(SITE), FOLDER: str(self._folder)}

    def arm(self, step: str) -> None:
        """Whoever comes to this step next is killed there. Raises ``KeyError`` for a step that the table lacks."""
        STEPS[step]
        self._mark(step).unlink(missing_ok=True)
        (self._folder / step).touch()

    def wait(self, step: str, timeout: float) -> Hit:
        """Who reached the armed step; where nobody does in time, it is disarmed, and this raises ``TimeoutError``."""
        hit = self._look(step, timeout)
        if hit is None and not self._disarm(step):
            hit = self._look(step, CLAIMED_WITHIN)
        if hit is None:
            raise TimeoutError(f"nobody came to the step {step} within {timeout:g} s")
        return hit

    def _mark(self, step: str) -> Path:
        return self._folder / f"{step}.hit"

    def _look(self, step: str, timeout: float) -> Hit | None:
        deadline = time.monotonic() + timeout
        while not self._mark(step).exists():
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.01)
        pid, t = self._mark(step).read_text(encoding="ascii").split()
        return Hit(int(pid), int(t))

    def _disarm(self, step: str) -> bool:
        """False where somebody has just reached it."""
        try:
            (self._folder / step).unlink()
        except FileNotFoundError:
            return False
        return True
