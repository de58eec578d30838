"""`gateway.loop_share`: as much for the sweep as for all others, but never the loop for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.loop_share import MOST_SLICES, LoopShare
from shared.clock import SystemClock


class Hand(SystemClock):
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@asynccontextmanager
async def others(clock: Hand, seconds: float) -> AsyncIterator[list[float]]:
    """Somebody who takes so long with each turn; when the turns began."""
    turns: list[float] = []

    async def work() -> None:
        while True:
            turns.append(clock.now)
            clock.now += seconds
            await asyncio.sleep(0)

    task = asyncio.create_task(work())
    try:
        yield turns
    finally:
        task.cancel()


@pytest.mark.parametrize(
    ("theirs", "slices"),
    [(0.0001, 1), (0.001, 1), (0.0025, 3), (0.004, 4), (1.0, MOST_SLICES)],
    ids=["idle", "as quick as a slice", "as long as two and a half", "as long as four", "a crowd"],
)
async def test_the_others_get_as_much_of_the_loop(theirs: float, slices: int) -> None:
    clock = Hand()
    share = LoopShare(clock)
    async with others(clock, theirs) as turns:
        await share.slice_done()  # what they take is known from here on
        del turns[:]
        for _ in range(slices * 10):
            clock.now += 0.001
            await share.slice_done()
        assert len(turns) == 10
