"""A timer wheel: who is to be looked at when, without a timer for each. Pure; no I/O, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.subscriber import Subscriber

SPOKES = 16
"""Turns of one revolution."""


class Wheel:
    """Subscribers by the turn at which they are due, at most one revolution ahead."""

    def __init__(self) -> None:
        self._spokes: list[dict[Subscriber, None]] = [{} for _ in range(SPOKES + 1)]
        self._at = 0

    def park(self, subscriber: Subscriber, turns: int) -> None:
        """Due after so many turns: at least one, at most a revolution."""
        self._spokes[(self._at + max(1, min(turns, SPOKES))) % len(self._spokes)][subscriber] = None

    def remove(self, subscriber: Subscriber) -> None:
        """Not due any more. Idempotent."""
        for spoke in self._spokes:
            spoke.pop(subscriber, None)

    def turn(self) -> dict[Subscriber, None]:
        """One turn on; those who are due now, who are in the wheel no longer."""
        self._at = (self._at + 1) % len(self._spokes)
        due, self._spokes[self._at] = self._spokes[self._at], {}
        return due
