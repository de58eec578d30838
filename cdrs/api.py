"""A node over HTTP, for gateways in other processes: a plain ASGI application under ``/internal/v1``, and the probes.

Bodies are msgpack (`shared.wire`), errors are `WireError` with the status of their class. Not for clients: no
authentication, no content negotiation; it belongs on a loopback or private address.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import partial
from typing import Any

import msgspec

from cdrs.feed import FeedCursor
from cdrs.lane import Answer
from cdrs.node import Node
from cdrs.probes import PATHS, NodeHealth
from cdrs.tasks import Wakeup
from shared.backends.http.messages import (
    ARGUMENTS,
    CALL,
    FEED,
    HANDOFF,
    HANDOFFS,
    MAX_CALL,
    MAX_HANDOFF,
    FeedRequest,
    HandoffAnswer,
    HandoffRequest,
    HandoffsRequest,
)
from shared.clock import SystemClock
from shared.errors import (
    CdrsError,
    InternalError,
    InvalidRequest,
    LinkBroken,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
)
from shared.records import StreamInfo
from shared.telemetry import Telemetry
from shared.wire import CONTENT_TYPE, WireError, encode, frame

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ANSWER_WAIT = 60.0
"""Seconds between two looks at handoffs that the node has still to answer; it answers each by its deadline."""
CHUNK_BYTES = 256 * 1024
"""Feed frames are joined up to this size while more of them are ready."""

logger = logging.getLogger(__name__)
_handoffs = msgspec.msgpack.Decoder(HandoffRequest)
_many = msgspec.msgpack.Decoder(HandoffsRequest)
_feeds = msgspec.msgpack.Decoder(FeedRequest)
_arguments = {name: msgspec.msgpack.Decoder(types) for name, types in ARGUMENTS.items()}


class NodeApi:
    """The application."""

    def __init__(self, node: Node, telemetry: Telemetry | None = None, *, health: NodeHealth | None = None) -> None:
        """``health`` answers the probes and shows the metrics; without one, the node alone is looked at, and
        ``/metrics`` shows ``telemetry``, if there is one."""
        self._node = node
        if health is None:
            health = NodeHealth(SystemClock(), telemetry)
            health.node = node
        self._health = health
        self._methods: dict[str, Callable[..., Awaitable[Any]]] = {
            "info": node.info,
            "ends": node.ends,
            "starts": node.starts,
            "page": node.page,
            "find": node.find,
            "offset_at": node.offset_at,
            "append_time": node.append_time,
            "streams": self._streams,
            "stream": node.stream,
            "create_stream": self._create_stream,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError(f"not for {scope['type']}")
        try:
            await self._route(scope, receive, send)
        except _Disconnected:
            return
        except msgspec.DecodeError:
            await _send_error(send, InvalidRequest("the body is not what this address takes"))
        except CdrsError as error:
            await _send_error(send, error)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await _send_error(send, InternalError())

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path == HANDOFF:
            _only_gateways(scope)
            await self._handoff(await _body(scope, receive, MAX_HANDOFF), send)
        elif path == HANDOFFS:
            _only_gateways(scope)
            await self._handoffs(await _body(scope, receive, MAX_HANDOFF), send)
        elif path == FEED:
            _only_gateways(scope)
            await self._feed(await _body(scope, receive, MAX_CALL), receive, send)
        elif path.startswith(CALL):
            _only_gateways(scope)
            await self._call(path.removeprefix(CALL), await _body(scope, receive, MAX_CALL), send)
        elif path in PATHS:
            await self._health.serve(scope, send)
        else:
            raise NotFound()

    async def _handoff(self, body: bytes, send: Send) -> None:
        request = _handoffs.decode(body)
        settled = await self._node.append(request.epoch, request.partition, request.events, timeout=request.timeout)
        await _send(send, 200, encode(settled))

    async def _handoffs(self, body: bytes, send: Send) -> None:
        """Answer each as soon as it is settled; what is settled at the same time goes out together."""
        request = _many.decode(body)
        answers: list[bytes] = []
        wakeup = Wakeup()

        def answered(index: int, outcome: Answer) -> None:
            answers.append(
                frame(
                    HandoffAnswer(index, [], WireError.of(outcome))
                    if isinstance(outcome, CdrsError)
                    else HandoffAnswer(index, list(outcome))
                )
            )
            wakeup.set()

        handoffs = [
            (partition, events, partial(answered, index)) for index, (partition, events) in enumerate(request.handoffs)
        ]
        self._node.hand_over(request.epoch, handoffs, timeout=request.timeout)
        left = len(handoffs)
        if not left:
            await _send(send, 200, b"")
            return
        await _start(send, 200, [(b"content-type", CONTENT_TYPE.encode())])
        while left:
            if not answers:
                await wakeup.wait(ANSWER_WAIT)
            ready = answers.copy()
            answers.clear()
            left -= len(ready)
            if ready:
                await send({"type": "http.response.body", "body": b"".join(ready), "more_body": left > 0})

    async def _call(self, name: str, body: bytes, send: Send) -> None:
        method = self._methods.get(name)
        if method is None:
            raise NotFound()
        arguments: Sequence[Any] = _arguments[name].decode(body)
        await _send(send, 200, encode(await method(*arguments)))

    async def _streams(self, after: str, limit: int) -> Sequence[StreamInfo]:
        return await self._node.streams(after=after, limit=limit)

    async def _create_stream(self, name: str, spread: int) -> StreamInfo:
        return await self._node.create_stream(name, spread=spread)

    async def _feed(self, body: bytes, receive: Receive, send: Send) -> None:
        request = _feeds.decode(body)
        async with self._node.feed(request.epoch, request.positions) as feed:
            await _start(send, 200, [(b"content-type", CONTENT_TYPE.encode())])
            watcher = asyncio.create_task(_stop_on_disconnect(receive, feed))
            try:
                await _pump(feed, send)
            finally:
                watcher.cancel()
                await asyncio.wait({watcher})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _pump(feed: FeedCursor, send: Send) -> None:
    """Send batches until the feed is stopped. A reader that is slow waits here and gets more at once later."""
    try:
        async for batch in feed:
            chunk = [frame(batch)]
            size = len(chunk[0])
            while size < CHUNK_BYTES and (more := feed.ready()) is not None:
                chunk.append(frame(more))
                size += len(chunk[-1])
            await send({"type": "http.response.body", "body": b"".join(chunk), "more_body": True})
    except LinkBroken:
        return


async def _stop_on_disconnect(receive: Receive, feed: FeedCursor) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    feed.stop()


class _Disconnected(Exception):
    """The client went away before its request was complete."""


async def _body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole request body. Raises `PayloadTooLarge`."""
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            raise PayloadTooLarge(f"at most {limit} bytes")
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise PayloadTooLarge(f"at most {limit} bytes")
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _only_gateways(scope: Scope) -> None:
    if scope["method"] != "POST":
        raise MethodNotAllowed("only POST")
    if any(name == b"origin" for name, _ in scope["headers"]):  # which browsers send with every POST
        raise InvalidRequest("this is for gateways, not for web pages")


async def _start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _send(send: Send, status: int, body: bytes, content_type: str = CONTENT_TYPE) -> None:
    length = str(len(body)).encode()
    await _start(send, status, [(b"content-type", content_type.encode()), (b"content-length", length)])
    await send({"type": "http.response.body", "body": body})


async def _send_error(send: Send, error: CdrsError) -> None:
    await _send(send, error.status, encode(WireError.of(error)))
