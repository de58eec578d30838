"""Deadlines of many things at once, with one timer between them: a timer each would cost as much as the things."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

COARSENESS = 0.01
"""Seconds between two looks while things run into their deadlines one after the other."""


class Deadlines(Generic[T]):
    """Calls ``expire`` with everything that is still here when its time has come, up to `COARSENESS` late.

    Adding and discarding cost a dictionary operation; a look costs one step for each thing that waits, and happens
    when the earliest deadline of those that were there at the last look has come.
    """

    __slots__ = ("_due", "_expire", "_items", "_now", "_timer")

    def __init__(self, expire: Callable[[T], None], now: Callable[[], float] = time.monotonic) -> None:
        """``expire`` must not fail; it may add and discard. ``now``: the clock that deadlines are read on."""
        self._expire = expire
        self._now = now
        self._items: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = float("inf")

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: T, deadline: float) -> None:
        """Have it expire then, unless it is discarded before."""
        self._items[item] = deadline
        if deadline < self._due:
            self._arm(deadline, self._now())

    def discard(self, item: T) -> None:
        """It has ended in time; nothing happens where it is not here."""
        self._items.pop(item, None)

    def close(self) -> None:
        """Forget everything."""
        self._items.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = float("inf")

    def _arm(self, due: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = asyncio.get_running_loop().call_later(max(due - now, 0.0), self._look)

    def _look(self) -> None:
        self._timer = None
        self._due = float("inf")
        now = self._now()
        for item in [item for item, deadline in self._items.items() if deadline <= now]:
            if self._items.pop(item, None) is not None:
                self._expire(item)
        if self._items:
            due = max(min(self._items.values()), now + COARSENESS)
            if due < self._due:
                self._arm(due, now)
