"""Time as a collaborator, so that tests and simulations bring their own."""

from __future__ import annotations

import os
import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one for durations, one for the calendar."""

    def monotonic(self) -> float:
        """Seconds on a clock that never jumps; for deadlines, ages and rates."""
        ...

    def unix_ms(self) -> int:
        """Milliseconds since 1970 on the wall clock; for stamps that people read, never for decisions."""
        ...


class SystemClock:
    """The machine's clocks."""

    monotonic = staticmethod(time.monotonic)

    def unix_ms(self) -> int:
        return time.time_ns() // 1_000_000


_GOLDEN = 0.6180339887
"""Multiples of it, modulo 1, lie far apart: so do the ticks of processes with consecutive numbers."""


def to_tick(interval: float, now: float) -> float:
    """Seconds from ``now``, on the monotonic clock, until the next tick of this process with this interval: at least a
    quarter of it, at most a quarter more than it.

    Whatever looks around at the same interval, or at a multiple of it, does so at the same moment, and a process at
    rest wakes up once for all of them. Processes of a machine have ticks of their own, so that they do not all ask for
    the same things at once.
    """
    left = interval - (now + os.getpid() * _GOLDEN % 1) % interval
    return left if left >= interval / 4 else left + interval
