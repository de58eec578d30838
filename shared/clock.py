"""Time as a collaborator, so that tests and simulations bring their own."""

from __future__ import annotations

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
