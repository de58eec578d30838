"""Time as a collaborator, so that tests and simulations bring their own."""

from __future__ import annotations

import random
import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one for durations, one for the calendar."""

    @property
    def phase(self) -> float:
        """Seconds, 0 to 1, that set the ticks of this process apart from those of others (`to_tick`)."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never jumps; for deadlines, ages and rates."""
        ...

    def unix_ms(self) -> int:
        """Milliseconds since 1970 on the wall clock; for stamps that people read, never for decisions."""
        ...


class SystemClock:
    """The machine's clocks, which processes share; one object for each process."""

    def __init__(self) -> None:
        self.phase = random.random()

    monotonic = staticmethod(time.monotonic)

    def unix_ms(self) -> int:
        return time.time_ns() // 1_000_000


def to_tick(interval: float, clock: Clock, *, phase: float | None = None) -> float:
    """Seconds until the next tick with this interval: at least a quarter of it, at most a quarter more than it.

    Whatever looks around at the same interval, or at a multiple of it, does so at the same moment, and a process at
    rest wakes up once for all of them. ``phase``: seconds by which the ticks lie beside those of the clock; by default
    the clock's own.
    """
    left = interval - (clock.monotonic() + (clock.phase if phase is None else phase)) % interval
    return left if left >= interval / 4 else left + interval
