"""The HTTP side of an event stream: sse-starlette's response over ready bytes, and the socket beneath it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import anyio
from sse_starlette.sse import EventSourceResponse
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from gateway.context import GatewayContext
from gateway.stalls import StallWatch, outstanding, set_kernel_timeout
from shared.settings import Settings

if TYPE_CHECKING:
    from gateway.protocol import CdrsHttpProtocol

SEND_BUFFER = 80 * 1024
"""What the kernel may hold for one subscriber, in bytes: it would let the buffer of a stalled one grow to megabytes. It
counts twice as much, for its bookkeeping; with a write of `sse.write_bytes` that is 224 KiB for one who never reads."""
PORTABLE_SEND_BUFFER = 40 * 1024
"""The same on the portable path, where such a client also holds a write before the transport, and a task."""
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = transport_of(scope)
        if transport is None:
            await super().__call__(scope, receive, send)
            return
        self.send_timeout = None
        with suppress(RuntimeError):  # it is closed already
            # A write that the client has not taken is all that is held here; without this there were two and more.
            transport.set_write_buffer_limits(0)
        context = GatewayContext.of(Request(scope))
        bound_socket(transport, context.settings.sse.stall_timeout, send_buffer=PORTABLE_SEND_BUFFER)
        line, stalls = _Line(transport), context.hub.stalls
        try:
            await super().__call__(scope, receive, _watched(send, transport, line, stalls))
        finally:
            stalls.forget(line)
            with suppress(RuntimeError):
                transport.set_write_buffer_limits()


class _Line:
    """A connection, as the stall watch sees it."""

    __slots__ = ("_transport",)

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def outstanding(self) -> int:
        return outstanding(self._transport)

    def set_kernel_timeout(self, seconds: float) -> None:
        set_kernel_timeout(self._transport, seconds)

    def cut(self) -> None:
        self._transport.abort()


def _watched(send: Send, transport: asyncio.Transport, line: _Line, stalls: StallWatch) -> Send:
    """The same, and while it waits for the client, the client is watched."""

    async def send_watched(message: Message) -> None:
        low, _ = transport.get_write_buffer_limits()
        if transport.get_write_buffer_size() <= low:  # it does not wait
            await send(message)
            return
        stalls.add(line)
        try:
            await send(message)
        finally:
            stalls.discard(line)

    return send_watched


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


def bound_socket(transport: asyncio.Transport | None, stall_timeout: float, *, send_buffer: int = SEND_BUFFER) -> None:
    """Bound what the kernel keeps for a client that does not read, and how long it waits for one that has vanished."""
    sock = transport.get_extra_info("socket") if transport is not None else None
    if transport is None or sock is None:
        return
    with suppress(OSError, ValueError):  # the client may have gone already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            set_kernel_timeout(transport, stall_timeout)


def transport_of(scope: Scope) -> asyncio.Transport | None:
    """The connection of a request; our protocol class puts it into the scope, other servers do not."""
    extensions = cast("dict[str, object]", scope.get("extensions") or {})
    return cast("asyncio.Transport | None", extensions.get("cdrs.transport"))
