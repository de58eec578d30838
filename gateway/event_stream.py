"""The HTTP side of an event stream: sse-starlette's response over ready bytes, and the socket beneath it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

import anyio
from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from gateway.sockets import ANSWER_SEND_BUFFER, bound_socket
from shared.settings import Settings

if TYPE_CHECKING:
    from gateway.protocol import CdrsHttpProtocol

NO_PING = 3600
"""Seconds. The hub's cursor blocks keep streams alive; sse-starlette's own comments carry no progress."""


class EventStream(EventSourceResponse):
    """An answer that lasts. A client that takes no byte for ``sse.stall_timeout`` is cut off without a word; its cursor
    resumes it. Where the connection cannot be seen, so is one that does not take a whole write in that time."""

    def __init__(self, chunks: AsyncIterator[bytes], *, settings: Settings, gzip: bool = False) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType]  (a bare dict in the library's annotation)
            chunks,
            headers=_coding_headers(gzip),
            sep="\n",
            ping=NO_PING,
            send_timeout=settings.sse.stall_timeout,
            shutdown_event=anyio.Event(),
            shutdown_grace_period=settings.gateway.drain_timeout,
        )
        self._stall_timeout = settings.sse.stall_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = own_connection(scope)
        if connection is None:
            await super().__call__(scope, receive, send)
            return
        self.send_timeout = None
        bound_socket(connection.transport, self._stall_timeout, send_buffer=ANSWER_SEND_BUFFER)
        with connection.streaming():
            await super().__call__(scope, receive, send)


def own_connection(scope: Scope) -> CdrsHttpProtocol | None:
    """The connection of a request under our own protocol class; other servers do not show theirs."""
    extensions = cast("dict[str, object]", scope.get("extensions") or {})
    return cast("CdrsHttpProtocol | None", extensions.get("cdrs.connection"))


def detachable(scope: Scope) -> CdrsHttpProtocol | None:
    """The connection of a request, where it can be handed to the hub: under our own protocol class, to GET, and unless
    the client has already sent more than this request."""
    connection = own_connection(scope)
    return connection if connection is not None and scope["method"] == "GET" and connection.is_detachable() else None


async def send_head(send: Send, *, gzip: bool) -> None:
    """The head of the answer, as sse-starlette makes it."""
    await send({"type": "http.response.start", "status": 200, "headers": list(head_fields(gzip=gzip))})


def head_fields(*, gzip: bool) -> list[tuple[bytes, bytes]]:
    """The header fields of an event stream, but those that every answer has."""
    return _GZIP_HEADERS if gzip else _HEADERS


def _coding_headers(gzip: bool) -> dict[str, str]:
    """Whoever stands between is told that the coding is the client's choice, and to leave it as it is."""
    headers = {"Cache-Control": "no-store, no-transform", "Vary": "Accept-Encoding"}
    return headers | {"Content-Encoding": "gzip"} if gzip else headers


_HEADERS = EventSourceResponse(iter(()), headers=_coding_headers(False)).raw_headers
_GZIP_HEADERS = EventSourceResponse(iter(()), headers=_coding_headers(True)).raw_headers


def transport_of(scope: Scope) -> asyncio.Transport | None:
    """The connection of a request; our protocol class puts it into the scope, other servers do not."""
    extensions = cast("dict[str, object]", scope.get("extensions") or {})
    return cast("asyncio.Transport | None", extensions.get("cdrs.transport"))
