"""uvicorn inside our own event loop; what the servers of gateway and node have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress

import uvicorn

TICK = 1.0
"""Seconds between two looks at what changes by the second: the Date field."""


class EmbeddedServer(uvicorn.Server):
    """Signals belong to whoever runs the process: uvicorn ends streams too late, and its lifespan hook comes after.

    It leaves when it is told to, instead of asking itself ten times a second, which an idle process would feel."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._leaving = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    def leave(self) -> None:
        """Stop accepting, and end when the connections have, within uvicorn's ``timeout_graceful_shutdown``."""
        self.should_exit = True
        self._leaving.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await self._leaving.wait()
