"""Clients that take no bytes: one clock for all of them, so that an open stream needs none of its own."""

from __future__ import annotations

import asyncio
from typing import Protocol

from shared.clock import Clock

LOOKS = 16
"""How often a stalled connection is looked at before it is cut."""


class Stallable(Protocol):
    """A connection that can be watched."""

    def outstanding(self) -> int:
        """Bytes that were written and have not reached the client."""
        ...

    def cut(self) -> None:
        """End it without a word; the client's cursor resumes it."""
        ...


class StallWatch:
    """Cuts connections of which no byte has left for ``timeout`` seconds. Costs nothing while nobody stalls."""

    def __init__(self, clock: Clock, timeout: float) -> None:
        self._clock = clock
        self._timeout = timeout
        self._watched: dict[Stallable, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._watched)

    def add(self, connection: Stallable) -> None:
        """It has just stopped taking bytes."""
        self._watched[connection] = (self._clock.monotonic(), connection.outstanding())

    def discard(self, connection: Stallable) -> None:
        """It takes bytes again, or has ended. Idempotent."""
        self._watched.pop(connection, None)

    def look(self) -> None:
        """Cut whoever has made no progress for too long."""
        now = self._clock.monotonic()
        for connection, (since, before) in list(self._watched.items()):
            left = connection.outstanding()
            if left < before:
                self._watched[connection] = (now, left)
            elif now - since >= self._timeout:
                self.discard(connection)
                connection.cut()

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            await asyncio.sleep(self._timeout / LOOKS)
            if self._watched:
                self.look()
