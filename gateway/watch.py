"""Waiting for the next change of the routes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Watch:
    """Wakes one waiter at each change of the routes."""

    __slots__ = ("__weakref__", "_changed", "_on_ring")

    def __init__(self, on_ring: Callable[[], None] | None = None) -> None:
        self._changed = asyncio.Event()
        self._on_ring = on_ring

    def ring(self) -> None:
        """Something changed."""
        self._changed.set()
        if self._on_ring is not None:
            self._on_ring()

    async def wait(self, timeout: float | None) -> bool:
        """Wait for a change since the last call, at most ``timeout`` seconds; False where there was none."""
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True
