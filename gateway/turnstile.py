"""Lets only so much in for each turn of the event loop, so that a crowd at the door does not hold up what runs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class _Place:
    """In the queue."""

    __slots__ = ("is_free", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.is_free: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Turnstile:
    """First come, first in. Costs nothing worth naming while nobody waits."""

    def __init__(self, per_turn: int) -> None:
        self._per_turn = per_turn
        self._passed = 0
        self._waiting: deque[_Place | Callable[[], None]] = deque()
        self._is_due = False

    @property
    def waiting(self) -> int:
        """How many stand before it."""
        return len(self._waiting)

    async def enter(self, weight: int = 1) -> None:
        """Wait for a turn with room. Everybody gets in: the queue moves with every turn, and the last one in a turn may
        weigh more than there was room for."""
        if self._passed < self._per_turn and not self._waiting:
            self._pass(weight)
            return
        place = _Place(weight)
        self._waiting.append(place)
        await place.is_free

    def call(self, visit: Callable[[], None]) -> None:
        """The same without a task: ``visit`` is called at its turn, which may be now. It must not fail."""
        if self._passed < self._per_turn and not self._waiting:
            self._pass()
            visit()
        else:
            self._waiting.append(visit)

    def _pass(self, weight: int = 1) -> None:
        self._passed += weight
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
            elif not place.is_free.done():
                self._pass(place.weight)
                place.is_free.set_result(None)
