"""Pages of history as JSON, and single events."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.asking import ask
from gateway.gaps import loss
from gateway.merging import Missing, Pages, merged
from gateway.params import Params
from gateway.selection import read_patterns, select
from gateway.starts import Start, parse_from, resolve_start
from gateway.views import Selection
from shared.clock import Clock
from shared.errors import AmbiguousEvent, UnknownEvent
from shared.filters import parse_filter
from shared.partitioning import partitions_of_stream
from shared.position import CursorWriter, Epoch, Position, cursor_after
from shared.records import HistoryPage, PageQuery, Record
from shared.sse import Shape
from shared.validation import check_event_id, check_source, check_stream

if TYPE_CHECKING:
    from gateway.context import GatewayContext

MAX_LIMIT = 1000
MAX_BYTES = 4 * 1024 * 1024
"""A page ends behind the event that crosses this many bytes, however many were asked for."""
MAX_SECONDS = 5.0
"""A page that finds little, because a filter lets little through, ends after this time; ``next`` goes on from there."""
NO_STORE = {"cache-control": "no-store"}


class _Spent(Exception):
    """A page has used up its time."""


class _Bounded:
    """Pages, until a deadline."""

    def __init__(self, pages: Pages, clock: Clock) -> None:
        self._pages = pages
        self._clock = clock
        self._deadline = clock.monotonic() + MAX_SECONDS

    async def page(self, query: PageQuery) -> HistoryPage:
        if self._clock.monotonic() >= self._deadline:
            raise _Spent
        return await self._pages.page(query)


async def page_response(request: Request, context: GatewayContext) -> Response:
    """A page: ``{"events":[{"cursor","event"}],"next","at_end","gap","gaps"}``.

    Events are the stored bytes. ``next`` is the cursor to continue from, by page or by subscription, also at the end
    and on an empty page. ``gaps``: what this page should have had and nobody has any more; ``gap``: the first of them,
    or null. ``at_end``: there was nothing more when the request came in.
    """
    query = Params(request.query_params, known=("stream", "from", "limit", "filter"))
    patterns = read_patterns(request, limit=context.settings.gateway.max_streams)
    limit = query.integer("limit", 100, least=1, most=MAX_LIMIT)
    asked = parse_from(query.one("from") or "earliest")
    wanted = parse_filter(query.one("filter") or "[]")
    selection = await select(context, patterns, wanted=wanted, shape=Shape())
    start = await resolve_start(context, selection, asked, strict=True)
    stops = await ask(context.router, lambda link: link.ends())
    page = _Page(context.router.epoch, selection, start)
    await page.fill(_Bounded(context.history, context.clock), stops, limit)
    return Response(page.json(stops), media_type="application/json", headers=NO_STORE)


class _Page:
    """A page under construction."""

    def __init__(self, epoch: Epoch, selection: Selection, start: Start) -> None:
        self._epoch = epoch
        self._selection = selection
        self._position = dict(start.next)
        self._gaps = list(start.gaps)
        self._items: list[bytes] = []

    async def fill(self, pages: Pages, stops: Mapping[int, int], limit: int) -> None:
        """Read until it is full, or the end is reached, or the time is up."""
        size = 0
        with suppress(_Spent):
            async with aclosing(merged(pages, self._selection, self._position, stops)) as records:
                async for record in records:
                    if record is None:
                        continue
                    if isinstance(record, Missing):
                        self._gaps.append(loss(self._epoch, *record[:4]))
                        continue
                    self._items.append(b'{"cursor":"%b","event":%b}' % (self._cursor(record), record.value))
                    size += len(record.value)
                    if len(self._items) >= limit or size >= MAX_BYTES:
                        return

    def _cursor(self, record: Record) -> bytes:
        if self._selection.vector:
            return CursorWriter(self._epoch, self._position).bytes()
        return cursor_after(self._epoch, record.partition, record.offset).encode()

    def json(self, stops: Mapping[int, int]) -> bytes:
        """The answer's body, around the events' own bytes."""
        at_end = all(offset >= stops[partition] for partition, offset in self._position.items())
        gaps = [gap.detail() for gap in self._gaps]
        return b'{"events":[%b],"next":"%b","at_end":%b,"gap":%b,"gaps":%b}' % (
            b",".join(self._items),
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
