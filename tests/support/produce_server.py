"""A real uvicorn with the product's protocol class, serving the produce routes over a stand-in for the nodes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

from fake_dispatcher import FakeCatalog, FakeContext, FakeDispatcher, with_gateway
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway import problems, produce
from gateway.app import GatewayApp
from gateway.context import GatewayContext
from gateway.server import serve
from gateway.short_posts import Connection, Post
from gateway.shortcut import Fields, Shortcut, Target
from shared.settings import Settings
from shared.telemetry import Telemetry


class CountingShortcut(Shortcut):
    """The product's, which counts."""

    taken = 0
    """Requests that took the short way."""

    @property
    def kept(self) -> int:
        """Blocks of header fields that are kept."""
        return len(self._fields)

    def take(self, connection: Connection, target: Target, fields: Fields, body: bytes) -> Post | None:
        post = super().take(connection, target, fields, body)
        self.taken += post is not None
        return post


@dataclass
class ProduceServer:
    port: int
    context: FakeContext
    shortcut: CountingShortcut | None
    stop: asyncio.Event

    @property
    def dispatcher(self) -> FakeDispatcher:
        return self.context.dispatcher

    def emptied(self) -> ProduceServer:
        """The same server, with nothing stored or counted."""
        self.context.dispatcher = FakeDispatcher()
        self.context.telemetry = Telemetry(version="test")
        self.context.catalog = FakeCatalog()
        if self.shortcut is not None:
            self.shortcut.taken = 0
        return self


TIGHT_LIMIT = 8192


def tight_settings() -> Settings:
    """Limits that tests can cross quickly."""
    return with_gateway(
        max_event_bytes=TIGHT_LIMIT,
        max_batch_bytes=4 * TIGHT_LIMIT,
        max_batch_events=5,
        header_timeout=0.3,
        body_timeout=0.4,
    )


async def _events(_request: Request) -> Response:
    return JSONResponse({"events": []})


async def _broken(_request: Request) -> Response:
    raise RuntimeError("canary-in-an-exception")


@asynccontextmanager
async def produce_server(
    context: FakeContext | None = None, *, has_shortcut: bool = True
) -> AsyncIterator[ProduceServer]:
    context = context or FakeContext()
    app = GatewayApp(
        routes=[
            *produce.routes,
            Route("/v1/streams/{stream}/events", _events),
            Route("/v1/events", _events),
            Route("/broken", _broken),
            *problems.routes,
        ],
        exception_handlers=dict(problems.exception_handlers),
    )
    app.state.gateway = context
    app.has_short_way = True
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            shortcut = CountingShortcut(cast("GatewayContext", context)) if has_shortcut else None
            serving = group.create_task(serve(app, [server], context.settings.gateway, stop=stop, shortcut=shortcut))
            try:
                yield ProduceServer(server.getsockname()[1], context, shortcut, stop)
            finally:
                context.dispatcher.gate.set()
                stop.set()
                await serving
