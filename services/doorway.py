"""What a node's port answers before the node itself can: the probes say that it lives, and what it waits for."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from cdrs.probes import PATHS, NodeHealth
from cdrs.server import serve

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

logger = logging.getLogger(__name__)


class Doorway:
    """A listening socket that is served from the start, and given to the node once there is one."""

    def __init__(self, listener: socket.socket, health: NodeHealth) -> None:
        self.listener = listener
        self.health = health
        self._app: Application | None = None
        self._on_stop: Callable[[], None] | None = None

    def tell(self, part: str, detail: str) -> None:
        """A part is missing, or, without detail, was reached (`shared.backplane.Waiting`)."""
        if detail:
            self.health.missing[part] = detail
        elif self.health.missing.pop(part, ""):
            logger.info("the %s was reached", part)

    def open(self, app: Application, on_stop: Callable[[], None]) -> None:
        """From now on this answers; ``on_stop`` ends what never ends by itself."""
        self._app, self._on_stop = app, on_stop

    async def serve(self) -> None:
        """Until cancelled."""
        await serve(self, self.listener, on_stop=self._stop)

    def _stop(self) -> None:
        if self._on_stop is not None:
            self._on_stop()

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if self._app is not None:
            await self._app(scope, receive, send)
            return
        if scope["path"] in PATHS:
            await self.health.serve(scope, send)
            return
        await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


async def first_of(work: Awaitable[Any], stop: asyncio.Event) -> Any:
    """What the work gives; None where ``stop`` was set first: it is cancelled then."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})
    return None if working.cancelled() else working.result()
