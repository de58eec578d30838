"""The gateway's HTTP server: uvicorn inside our own event loop, with our own protocol class."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import uvicorn
from starlette.types import ASGIApp

from gateway.accepting import Acceptor
from gateway.short_protocol import http_protocol
from gateway.short_streams import StreamShortcut
from gateway.shortcut import Shortcut
from gateway.sockets import ANSWER_SEND_BUFFER
from gateway.stalls import StallWatch
from shared.embedded_server import EmbeddedServer
from shared.settings import GatewaySettings

if TYPE_CHECKING:
    from gateway.protocol import CdrsHttpProtocol


class GatewayServer(EmbeddedServer):
    """uvicorn, but for taking connections."""

    _acceptor: Acceptor | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        config, server, loop = self.config, self.server_state, asyncio.get_running_loop()
        made = cast("type[CdrsHttpProtocol]", config.http_protocol_class)
        room, state = made.room, self.lifespan.state
        self._acceptor = Acceptor(
            sockets or [],
            lambda: made(config, server, state, loop),
            is_crowded=lambda more: room is not None and len(server.connections) + more >= room.served,
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._acceptor is not None:
            await self._acceptor.close()
        await super().shutdown(sockets)


async def serve(
    app: ASGIApp,
    listeners: Sequence[socket.socket],
    settings: GatewaySettings,
    *,
    stop: asyncio.Event,
    shortcut: Shortcut | None = None,
    streams: StreamShortcut | None = None,
    hosts: frozenset[bytes] | None = None,
    stalls: StallWatch | None = None,
) -> None:
    """Serve on all these until ``stop`` is set and the connections have ended, at most ``drain_timeout`` later.

    ``shortcut``: what serves plain POSTs without the application; ``streams``: what serves event streams so; ``hosts``:
    and ``stalls``: those of `CdrsHttpProtocol`."""
    for listener in listeners:
        # What comes in through it has the same: the kernel would let it grow to megabytes for one large answer.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ANSWER_SEND_BUFFER)
    protocol = cast("type[CdrsHttpProtocol]", http_protocol(settings, shortcut, streams))
    protocol.hosts, protocol.stalls = hosts, stalls
    config = uvicorn.Config(
        app,
        http=protocol,
        loop="none",
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
    )
    server = GatewayServer(config)

    async def watch() -> None:
        await stop.wait()
        server.leave()

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch(), name="server-stop")
        await server.serve(sockets=list(listeners))
        watching.cancel()
