"""Clients that take no bytes: one clock for all of them, so that an open stream needs none of its own."""

from __future__ import annotations

import asyncio
from typing import Protocol

from shared.clock import Clock

LOOKS = 16
"""How often a stalled connection is looked at before it is cut."""
SLICE = 64
"""Connections looked at before the loop gets a turn: each is a call into the kernel."""


class Stallable(Protocol):
    """A connection that can be watched."""

    def outstanding(self) -> int:
        """Bytes that were written and have not reached the client."""
        ...

    def set_kernel_timeout(self, seconds: float) -> None:
        """See the function."""
        ...

    def cut(self) -> None:
        """End it without a word; the client's cursor resumes it."""
        ...


class StallWatch:
    """Cuts connections of which no byte has left for ``timeout`` seconds. Costs nothing while nobody stalls.

    The kernel's own timeout is for clients that have vanished. It is off for those that are seen here to stall: with a
    window that opens for less than a segment it would run on, and end a client that takes little, but takes it.
    """

    def __init__(self, clock: Clock, timeout: float) -> None:
        self._clock = clock
        self._timeout = timeout
        self._watched: dict[Stallable, tuple[float, int]] = {}
        self._slow: dict[Stallable, None] = {}
        """Those whose kernel timeout is off."""

    def __len__(self) -> int:
        return len(self._watched)

    def add(self, connection: Stallable) -> None:
        """It has just stopped taking bytes."""
        self._watched[connection] = (self._clock.monotonic(), connection.outstanding())

    def discard(self, connection: Stallable) -> None:
        """It takes bytes again. Idempotent."""
        self._watched.pop(connection, None)

    def forget(self, connection: Stallable) -> None:
        """It has ended. Idempotent."""
        self._watched.pop(connection, None)
        if connection in self._slow:
            del self._slow[connection]
            connection.set_kernel_timeout(self._timeout)  # the connection may go on to serve other requests

    async def look(self) -> None:
        """Cut whoever has made no progress for too long."""
        for count, connection in enumerate([*self._watched, *(self._slow.keys() - self._watched.keys())], 1):
            if connection in self._watched:  # else it has gone on, or away, since this look began
                self._look_at_stalled(connection)
            elif connection in self._slow and not connection.outstanding():
                del self._slow[connection]
                connection.set_kernel_timeout(self._timeout)
            if count % SLICE == 0:
                await asyncio.sleep(0)

    def _look_at_stalled(self, connection: Stallable) -> None:
        since, before = self._watched[connection]
        now, left = self._clock.monotonic(), connection.outstanding()
        if connection not in self._slow:
            self._slow[connection] = None
            connection.set_kernel_timeout(0)
        if left < before:
            self._watched[connection] = (now, left)
        elif now - since >= self._timeout:
            self.forget(connection)
            connection.cut()

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            await asyncio.sleep(self._timeout / LOOKS)
            if self._watched or self._slow:
                await self.look()
