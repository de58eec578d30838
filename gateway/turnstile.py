"""Lets only so many in for each turn of the event loop, so that a crowd at the door does not hold up what runs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Turnstile:
    """First come, first in. Costs nothing worth naming while nobody waits."""

    def __init__(self, per_turn: int) -> None:
        self._per_turn = per_turn
        self._passed = 0
        self._waiting: deque[asyncio.Future[None] | Callable[[], None]] = deque()
        self._is_due = False

    @property
    def waiting(self) -> int:
        """How many stand before it."""
        return len(self._waiting)

    async def enter(self) -> None:
        """Wait for a turn with room. Everybody gets in: the queue moves with every turn."""
        if self._passed < self._per_turn and not self._waiting:
            self._pass()
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        await place

    def call(self, visit: Callable[[], None]) -> None:
        """The same without a task: ``visit`` is called at its turn, which may be now. It must not fail."""
        if self._passed < self._per_turn and not self._waiting:
            self._pass()
            visit()
        else:
            self._waiting.append(visit)

    def _pass(self) -> None:
        self._passed += 1
        if not self._is_due:
            self._is_due = True
            # Behind what is ready now and what arrives meanwhile: a timer is looked at once a turn.
            asyncio.get_running_loop().call_later(0, self._turn)

    def _turn(self) -> None:
        self._is_due = False
        self._passed = 0
        while self._waiting and self._passed < self._per_turn:
            place = self._waiting.popleft()
            if callable(place):
                self._pass()
                place()
            elif not place.done():
                self._pass()
                place.set_result(None)
