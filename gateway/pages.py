"""Pages of history as JSON, and single events."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

import orjson
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.asking import ask
from gateway.event_stream import own_connection
from gateway.gaps import loss
from gateway.merging import PAGE_BYTES, Item, Missing, merged
from gateway.params import Params
from gateway.selection import read_patterns, select
from gateway.starts import Start, parse_from, resolve_start
from gateway.views import Selection
from shared.clock import Clock
from shared.errors import AmbiguousEvent, ServerError, UnknownEvent
from shared.filters import parse_filter
from shared.partitioning import partitions_of_stream
from shared.position import CursorWriter, Epoch, Position, cursor_after
from shared.records import HistoryPage, PageQuery, Record
from shared.sse import Shape
from shared.validation import check_event_id, check_source, check_stream

if TYPE_CHECKING:
    from gateway.context import GatewayContext
    from gateway.protocol import CdrsHttpProtocol
    from gateway.replay import HistoryReader

MAX_LIMIT = 1000
MAX_BYTES = 4 * 1024 * 1024
"""A page ends behind the event that crosses this many bytes, however many were asked for."""
MAX_SECONDS = 5.0
"""A page that finds little, because a filter lets little through, ends after this time; ``next`` goes on from there."""
PIECE = 16 * 1024
"""Bytes of events that are written at once and, of all partitions together, read at once for a client that is not known
to take more."""
LEAST_READ = 8 * 1024
"""Of one partition."""
LEAST_EVENT = 256
"""Bytes that an event has with all that is about it, or hardly fewer."""
NO_STORE = {"cache-control": "no-store"}

logger = logging.getLogger(__name__)


class _Spent(Exception):
    """A page has used up its time."""


class _Bounded:
    """History, for one page: until a deadline, and as much at once as its client has taken so far."""

    def __init__(self, history: HistoryReader, clock: Clock, partitions: int) -> None:
        self._history = history
        self._clock = clock
        self._deadline = clock.monotonic() + MAX_SECONDS
        self._first = self._most = max(PIECE // max(partitions, 1), LEAST_READ)

    def turn(self) -> AbstractAsyncContextManager[None]:
        """See `HistoryReader.turn`."""
        return self._history.turn()

    async def page(self, query: PageQuery) -> HistoryPage:
        if self._clock.monotonic() >= self._deadline:
            raise _Spent
        limit, max_bytes = min(query.limit, self._most // LEAST_EVENT), min(query.max_bytes, self._most)
        return await self._history.page(replace(query, limit=limit, max_bytes=max_bytes))

    def goes_on(self) -> None:
        """The client has taken a piece at once, or there was nothing for it."""
        self._most = min(self._most * 4, PAGE_BYTES)

    async def wait(self, connection: CdrsHttpProtocol) -> None:
        """Until the client takes more. That is no looking."""
        began = self._clock.monotonic()
        await connection.taken()
        self._deadline += self._clock.monotonic() - began
        self._most = self._first


async def page_response(request: Request, context: GatewayContext) -> Response:
    """A page: ``{"events":[{"cursor","event"}],"next","at_end","gap","gaps"}``.

    Events are the stored bytes. ``next`` is the cursor to continue from, by page or by subscription, also at the end
    and on an empty page. ``gaps``: what this page should have had and nobody has any more; ``gap``: the first of them,
    or null. ``at_end``: there was nothing more when the request came in.
    """
    connection = own_connection(request.scope)
    if connection is not None:
        connection.read_no_more()
    query = Params(request.query_params, known=("stream", "from", "limit", "filter"))
    patterns = read_patterns(request, limit=context.settings.gateway.max_streams)
    limit = query.integer("limit", 100, least=1, most=MAX_LIMIT)
    asked = parse_from(query.one("from") or "earliest")
    wanted = parse_filter(query.one("filter") or "[]")
    selection = await select(context, patterns, wanted=wanted, shape=Shape())
    start = await resolve_start(context, selection, asked, strict=True)
    stops = await ask(context.router, lambda link: link.ends())
    page = Page(context, selection, start, stops, limit)
    pieces = page.pieces(connection)
    first = await anext(pieces)  # what is wrong with the nodes now is still a status
    if page.is_over:
        await pieces.aclose()
        return Response(first, media_type="application/json", headers=NO_STORE)
    return _PageResponse(first, pieces, connection)


class _PageResponse(StreamingResponse):
    """A page that is read as its client takes it."""

    def __init__(self, first: bytes, pieces: AsyncGenerator[bytes], connection: CdrsHttpProtocol | None) -> None:
        super().__init__(pieces, media_type="application/json", headers=NO_STORE)
        self._first = first
        self._pieces = pieces
        self._connection = connection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._pieces):
            if scope["method"] == "HEAD":
                await self._pieces.aclose()
            with self._connection.streaming() if self._connection is not None else nullcontext():
                await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """As it was, but a piece that was written is not held here, too, while the next one is waited for."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body, self._first = [self._first], b""
        while body:
            await send({"type": "http.response.body", "body": body.pop(), "more_body": True})
            with suppress(StopAsyncIteration):
                body.append(await anext(self._pieces))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Page:
    """A page under construction."""

    def __init__(
        self, context: GatewayContext, selection: Selection, start: Start, stops: Mapping[int, int], limit: int
    ) -> None:
        self.is_over = False
        """Nothing more is read."""
        self._epoch = context.router.epoch
        self._selection = selection
        self._position = dict(start.next)
        self._gaps = list(start.gaps)
        self._stops = stops
        self._history = _Bounded(context.history, context.clock, len(start.next))
        self._room = limit
        """Events that it may still get."""
        self._size = 0
        self._has_begun = False
        self._is_taking = False
        """The client has taken all that was written."""
        self._comma = b""

    async def pieces(self, connection: CdrsHttpProtocol | None) -> AsyncGenerator[bytes]:
        """The answer's body. What was read ahead is not kept while the client takes nothing.

        Raises what the nodes answer, unless something was given out before: then the page ends there."""
        while not self.is_over:
            async with self._reading() as records:
                held = [await self._piece(records)]
                # The first one goes behind the answer's head, for which may have to be waited.
                while self._is_taking and not self.is_over:
                    yield held.pop()
                    self._heed(connection)
                    if self._is_taking:
                        held.append(await self._piece(records))
            if held:
                yield held.pop()
                self._heed(connection)
            if connection is not None and not self.is_over and not self._is_taking:
                await self._history.wait(connection)

    def _heed(self, connection: CdrsHttpProtocol | None) -> None:
        """After a piece: whether the client has taken it at once, and more can be read ahead."""
        self._is_taking = connection is not None and connection.is_taken
        if self._is_taking:
            self._history.goes_on()

    @asynccontextmanager
    async def _reading(self) -> AsyncGenerator[AsyncIterator[Item | None]]:
        """What is read ahead is kept that long, and clients are not waited for meanwhile."""
        records = merged(self._history, self._selection, self._position, self._stops)
        async with self._history.turn(), aclosing(records):
            yield records

    async def _piece(self, records: AsyncIterator[Item | None]) -> bytes:
        parts: list[bytes] = [] if self._has_begun else [b'{"events":[']
        try:
            await self._read(records, parts)
        except _Spent:
            self.is_over = True
        except ServerError as error:
            if not self._has_begun:
                raise
            logger.warning("a page ends early: %s", error)
            self.is_over = True
        self._has_begun = True
        if self.is_over:
            parts.append(self._closing())
        return b"".join(parts)

    async def _read(self, records: AsyncIterator[Item | None], parts: list[bytes]) -> None:
        """Read until a piece is full, or the page is, or the end is reached."""
        stop = min(self._size + PIECE, MAX_BYTES)
        async for record in records:
            if record is None:  # of what was read nothing is kept
                self._history.goes_on()
                continue
            if isinstance(record, Missing):
                self._gaps.append(loss(self._epoch, *record[:4]))
                continue
            parts.append(b'%b{"cursor":"%b","event":%b}' % (self._comma, self._cursor(record), record.value))
            self._comma = b","
            self._size += len(record.value)
            self._room -= 1
            if not self._room or self._size >= stop:
                self.is_over = not self._room or self._size >= MAX_BYTES
                return
        self.is_over = True

    def _cursor(self, record: Record) -> bytes:
        if self._selection.vector:
            return CursorWriter(self._epoch, self._position).bytes()
        return cursor_after(self._epoch, record.partition, record.offset).encode()

    def _closing(self) -> bytes:
        """What stands behind the events."""
        at_end = all(offset >= self._stops[partition] for partition, offset in self._position.items())
        gaps = [gap.detail() for gap in self._gaps]
        return b'],"next":"%b","at_end":%b,"gap":%b,"gaps":%b}' % (
            CursorWriter(self._epoch, self._position).bytes(),
            b"true" if at_end else b"false",
            orjson.dumps(gaps[0]) if gaps else b"null",
            orjson.dumps(gaps),
        )


async def one_event(request: Request) -> Response:
    """``GET /v1/streams/{stream}/events/{id}?source=``: one event, as stored."""
    context: GatewayContext = request.app.state.gateway
    query = Params(request.query_params, known=("source",))
    stream = check_stream(request.path_params["stream"])
    event_id = check_event_id(request.path_params["id"])
    source = query.one("source")
    if source is not None:
        check_source(source)
    home, *_ = partitions_of_stream(stream, partitions=context.router.partitions)
    found = await ask(context.router, lambda link: link.find(stream, event_id, source), partition=home)
    if not found:
        raise UnknownEvent("the stream holds no event with this id" + (" and source" if source is not None else ""))
    if len(found) > 1:
        raise AmbiguousEvent(f"{len(found)} sources used this id; say which with ?source=", sources=len(found))
    return _event_response(request, found[0], context.router.epoch)


def _event_response(request: Request, record: Record, epoch: Epoch) -> Response:
    # An event never changes, and nothing else ever stands at its position.
    etag = f'"{Position(epoch, record.partition, record.offset)}"'
    headers = {
        "etag": etag,
        "cdrs-cursor": cursor_after(epoch, record.partition, record.offset),
        "cache-control": "private, no-cache",
    }
    known = request.headers.get("if-none-match", "")
    if known.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(record.value, media_type="application/cloudevents+json", headers=headers)


routes = [Route("/v1/streams/{stream}/events/{id:path}", one_event, methods=["GET"])]
