"""Reading history for one subscriber, at its own pace, from a vector up to the place where it joins its live view.

The place is picked first, then each partition is read exactly to it; if the view has moved on so far that the place is
gone, another one is picked. So nothing is skipped and nothing repeated where history and live meet. What is read and
built on the way is shared with whoever comes the same way (`gateway.segments`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from gateway.asking import ask
from gateway.hub import Hub
from gateway.routing import Router
from gateway.segments import Segment, Segments
from gateway.subscriber import Subscriber
from gateway.turnstile import Turnstile
from gateway.views import Selection
from shared.clock import Clock
from shared.errors import Unavailable
from shared.position import CursorWriter
from shared.records import HistoryPage, PageQuery
from shared.telemetry import Telemetry

READ_TIMEOUT = 10.0
"""Seconds of trying all nodes for one page before the reader is told to come back later."""
QUESTIONS_AT_ONCE = 48
"""Pages that are asked of the nodes at the same time: fewer than a link has connections for questions, so that the time
of a question is the node's alone."""
PAGES_AT_ONCE = 4
"""Pages for clients that are read at the same time. What is read ahead for one of them takes up to a megabyte, and time
of this process, of which more at once would be no faster; while its client takes nothing, nothing is read for it."""
QUEUE_TIMEOUT = 10.0
"""Seconds that a reader waits for its turn to ask. Nothing is written to it meanwhile, and proxies cut who is silent
for long: it is sent away in words before that."""
OFFSETS_A_TURN = 1024
"""Offsets read from the ring in one turn of the event loop, all readers together. One costs 1 us, with a filter that
looks into the event 6; two pages, or the history of many who come back from close by."""
PAGE_WEIGHT = 16
"""What a page costs besides, in offsets."""


class HistoryReader:
    """Pages from the gateway's ring where it reaches back far enough, else from the nodes in order of rank."""

    def __init__(self, router: Router, hub: Hub, clock: Clock, telemetry: Telemetry | None = None) -> None:
        self._router = router
        self._hub = hub
        self._clock = clock
        self._telemetry = telemetry
        self._segments = Segments(hub)
        self._turnstile = Turnstile(OFFSETS_A_TURN)
        self._questions = asyncio.Semaphore(QUESTIONS_AT_ONCE)
        self._pages = asyncio.Semaphore(PAGES_AT_ONCE)

    def segment(self, subscriber: Subscriber, selection: Selection, position: Mapping[int, int]) -> Segment:
        """History of a selection from a position on as ready frames. The subscriber stands at the place of its view
        that the segment leads to."""
        return self._segments.at(self, subscriber, selection, position)

    def told_gaps(self, reasons: Sequence[str]) -> None:
        """Gaps in history were told to one subscriber."""
        if self._telemetry is not None:
            for reason in reasons:
                self._telemetry.gap(reason)

    async def page(self, query: PageQuery) -> HistoryPage:
        """Raises `Unavailable` when no node answers within `READ_TIMEOUT`, or its turn does not come."""
        if self._covers(query):
            await self._turnstile.enter(PAGE_WEIGHT + min(query.limit, query.stop - query.start))
            if self._covers(query):
                records, reached = self._hub.rings[query.partition].read(
                    query.start, query.stop, limit=query.limit, max_bytes=query.max_bytes, streams=query.streams
                )
                return HistoryPage(records, reached)
        async with _turn(self._questions):
            return await self._ask(query)

    def turn(self) -> AbstractAsyncContextManager[None]:
        """The turn of one who reads a page for a client. Raises `Unavailable` when it does not come."""
        return _turn(self._pages)

    def _covers(self, query: PageQuery) -> bool:
        ring = self._hub.rings.get(query.partition)
        return ring is not None and ring.covers(query.start) and not query.backwards

    async def _ask(self, query: PageQuery) -> HistoryPage:
        deadline = self._clock.monotonic() + READ_TIMEOUT
        while True:
            if self._telemetry is not None:
                self._telemetry.asked_history()
            try:
                async with asyncio.timeout(READ_TIMEOUT / 2):
                    return await ask(self._router, lambda link: link.page(query), partition=query.partition)
            except (Unavailable, TimeoutError) as error:
                if self._clock.monotonic() >= deadline:
                    raise Unavailable("no node can be asked for history", retry_after=1) from error
            await asyncio.sleep(0.05)


@asynccontextmanager
async def _turn(among: asyncio.Semaphore) -> AsyncGenerator[None]:
    try:
        async with asyncio.timeout(QUEUE_TIMEOUT):
            await among.acquire()
    except TimeoutError as error:
        raise Unavailable("too many ask for history", retry_after=5) from error
    try:
        yield
    finally:
        among.release()


class Replay:
    """One subscriber's way from a vector of the past to its live view."""

    def __init__(
        self, hub: Hub, reader: HistoryReader, *, selection: Selection, subscriber: Subscriber, start: Mapping[int, int]
    ) -> None:
        self._hub = hub
        self._reader = reader
        self._selection = selection
        self._subscriber = subscriber
        self.position: Mapping[int, int] = {p: start[p] for p in selection.partitions}
        """Per partition of the selection the next offset to read."""
        self._target: Mapping[int, int] = {}
        self.asked_nodes = False
        """Whether the gateway's own ring did not reach back far enough."""

    async def chunks(self) -> AsyncIterator[bytes]:
        """Frames of history as writes of about 32 KiB. When it ends, the subscriber is live."""
        while True:
            self.asked_nodes = self.asked_nodes or not self._in_ring()
            segment = self._reader.segment(self._subscriber, self._selection, self.position)
            self._target = segment.target
            number = 0
            with segment.reading():
                while (chunk := await segment.chunk(number)) is not None:
                    number += 1
                    self.position = chunk.position
                    self._subscriber.cursor = chunk.cursor or self._subscriber.cursor
                    self._reader.told_gaps(chunk.gaps)
                    if chunk.data:
                        yield chunk.data
            if segment.reaches_view and self._hub.go_live(self._subscriber):
                return

    def _in_ring(self) -> bool:
        rings = self._hub.rings
        return all(rings[partition].covers(offset) for partition, offset in self.position.items())

    def joined_at(self) -> bytes:
        """The cursor of the place where the subscriber went live."""
        target = self._target
        if not self._selection.vector:
            target = {p: target[p] for p in self._selection.partitions}
        return CursorWriter(self._hub.epoch, target).bytes()
