"""The portable write path: any ASGI server, through sse-starlette's response fed with ready bytes."""

from __future__ import annotations

import asyncio


class PortableWriter:
    """A mailbox of one chunk between the hub and the task that sends to one client."""

    __slots__ = ("_chunk", "_final", "_waiter", "ended", "lagging", "ready")

    def __init__(self) -> None:
        self.ready = False
        self.lagging = False
        """The frames needed next are gone: history must be read."""
        self.ended = False
        self._chunk: bytes | None = None
        self._final = b""
        self._waiter: asyncio.Future[None] | None = None

    def write(self, chunk: bytes) -> None:
        self.ready = False
        self._chunk = chunk
        self._notify()

    def lag(self) -> None:
        self.ready = False
        self.lagging = True
        self._notify()

    def finish(self, blocks: bytes) -> None:
        if not self.ended:
            self.ready = False
            self.ended = True
            self._final = blocks
            self._notify()

    def _notify(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def take(self) -> bytes | None:
        """The next chunk; None when there will be none before `lagging` is dealt with or the stream has `ended`.

        Waits for as long as the stream lives: heartbeats, rotation and drain bound it.
        """
        while True:
            chunk, self._chunk = self._chunk, None
            if chunk is not None:
                return chunk
            if self.ended or self.lagging:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def final(self) -> bytes:
        """The last blocks, as they were given to `finish`."""
        return self._final
