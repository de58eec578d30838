"""A clock that stands still until a test moves it."""

from __future__ import annotations


class HandClock:
    """`shared.clock.Clock`; both clocks show the same time."""

    phase = 0.0

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def unix_ms(self) -> int:
        return round(self.now * 1000)
