"""How much of the event loop a long piece of work takes before the others get a turn."""

from __future__ import annotations

import asyncio

from shared.clock import Clock

MOST_SLICES = 4
"""Slices in a row, however long the others take."""


class LoopShare:
    """Lets work that is done in slices have as much of the loop as all others together, no more and no less.

    What goes through the loop takes several steps, one in each turn of it, and waits for a slice before each. So while
    the others are quick, each slice is followed by a turn of theirs. While they are not, as when a crowd comes back,
    that would starve the work: then several slices follow each other.
    """

    __slots__ = ("_began", "_clock", "_slices", "_theirs")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = float("-inf")
        self._theirs = 0.0
        """Seconds that the last turn of the others took."""
        self._slices = 0

    async def slice_done(self) -> None:
        """To be awaited between two slices: gives the others a turn where it is time for that."""
        self._slices += 1
        now = self._clock.monotonic()
        if self._slices < MOST_SLICES and now - self._began < self._theirs:
            return
        await asyncio.sleep(0)
        self._began = self._clock.monotonic()
        self._theirs = self._began - now
        self._slices = 0
