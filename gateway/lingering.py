"""Closing a connection so that a client that is still sending gets what was answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from gateway.sockets import outstanding

LINGER = 2.0
"""Seconds after which a client that is still sending has taken the answer, or does not want it."""
CLOSE_TIMEOUT = 10.0
"""Seconds in which a client has to take what was written before a close."""


class LingeringTransport:
    """A transport whose ``close()`` reaches clients that are still sending, and ends for those that do not read.

    Closing a socket with unread input resets the connection, and the client may lose the answer that says why. So the
    sending side is closed first, and what still comes is thrown away for a moment.
    """

    def __init__(
        self, transport: asyncio.Transport, must_linger: Callable[[], bool], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.inner = self._transport = transport
        self._must_linger = must_linger
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """As of a transport."""
        return self._timer is not None or self._transport.is_closing()

    def close(self) -> None:
        """Close once everything is written; idempotent."""
        if self.is_closing():
            return
        if self._must_linger() and self._transport.can_write_eof():
            self._deadline = self._loop.time() + CLOSE_TIMEOUT
            self._timer = self._loop.call_later(LINGER, self._has_lingered)
            self._transport.write_eof()
            self._transport.resume_reading()
        else:
            self._timer = self._loop.call_later(CLOSE_TIMEOUT, self._transport.abort)
            self._transport.close()

    def _has_lingered(self) -> None:
        """A large answer takes longer: as long as every other one that is written before a close."""
        if outstanding(self._transport) and self._loop.time() < self._deadline:
            self._timer = self._loop.call_later(LINGER, self._has_lingered)
        else:
            self._transport.abort()

    def lost(self) -> None:
        """The connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
