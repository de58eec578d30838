"""History shared by those who come the same way: read once, given to each exactly up to its live view."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import orjson
import pytest
from sample_records import batch, record
from spec_parser import SpecParser

from gateway import segments
from gateway.hub import Hub
from gateway.replay import Replay
from gateway.segments import Segment, Segments
from gateway.subscriber import Subscriber
from gateway.views import Selection
from shared.clock import SystemClock
from shared.errors import Unavailable
from shared.filters import parse_filter
from shared.position import Cursor, Epoch
from shared.records import HistoryPage, PageQuery
from shared.settings import SseSettings
from shared.sse import DEFAULT_SHAPE
from shared.telemetry import Telemetry

ORDERS = Selection(("orders",), (), parse_filter("[]"), DEFAULT_SHAPE, (0,), False)
FULL = 300


class Pages:
    """History of partition 0, counted; ``gate`` holds pages back, ``error`` ends them."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.kept = Segments(hub)

    async def page(self, query: PageQuery) -> HistoryPage:
        self.asked += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        found, reached = self.hub.rings[0].read(query.start, query.stop, limit=query.limit, max_bytes=query.max_bytes)
        return HistoryPage(found, reached)

    def told_gaps(self, reasons: Sequence[str]) -> None:
        assert not reasons

    def segment(self, subscriber: Subscriber, selection: Selection, position: dict[int, int]) -> Segment:
        return self.kept.at(self, subscriber, selection, position)


class Reader:
    """A client: history first, then whatever the hub writes."""

    def __init__(self, hub: Hub) -> None:
        self.ready = False
        self.parser = SpecParser()
        self.subscriber = Subscriber(self, b"", remote="", now=0.0, expires=1e12)
        self._hub = hub

    def write(self, chunk: bytes) -> None:
        self.parser.feed(chunk)

    def lag(self) -> None:
        raise AssertionError("nobody is slow here")

    def finish(self, chunk: bytes) -> None:
        self.parser.feed(chunk)

    async def catch_up(self, pages: Pages, start: int) -> None:
        replay = Replay(
            self._hub,
            pages,
            selection=ORDERS,
            subscriber=self.subscriber,
            start={0: start},  # type: ignore[arg-type]
        )
        async for chunk in replay.chunks():
            self.parser.feed(chunk)
            await asyncio.sleep(0)
        self.ready = True
        self._hub.service(self.subscriber)

    @property
    def ids(self) -> list[int]:
        return [int(orjson.loads(event.data)["id"].partition("-")[2]) for event in self.parser.events]


@asynccontextmanager
async def world() -> AsyncIterator[tuple[Hub, Pages]]:
    hub = Hub(SseSettings(), SystemClock(), Telemetry(version="test"))
    hub.start(Epoch(1, 7), {0: 0, 1: 0})
    happen(hub, 0, FULL)
    task = asyncio.create_task(hub.run())
    try:
        yield hub, Pages(hub)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def happen(hub: Hub, first: int, stop: int) -> None:
    hub.sink(batch(*[record(offset, stream="orders") for offset in range(first, stop)]))


async def test_a_crowd_from_one_place_reads_it_once_while_events_go_on() -> None:
    async with world() as (hub, pages):
        readers = [Reader(hub) for _ in range(200)]
        for number, reader in enumerate(readers):
            await reader.catch_up(pages, 100)
            if number % 10 == 9:
                happen(hub, FULL + number // 10, FULL + number // 10 + 1)
                await asyncio.sleep(0)
        async with asyncio.timeout(10):
            while any(reader.subscriber.seq < reader.subscriber.view.end for reader in readers):  # type: ignore[union-attr]
                await asyncio.sleep(0)
        assert all(reader.ids == list(range(100, FULL + 20)) for reader in readers)
        assert pages.asked == 1


@pytest.mark.parametrize("size", [1, 1000])
async def test_long_history_is_shared_piece_by_piece(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "CHUNK_BYTES", size)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 10 * size)
    async with world() as (hub, pages):
        readers = [Reader(hub) for _ in range(20)]
        async with asyncio.TaskGroup() as group:
            for number, reader in enumerate(readers):
                group.create_task(reader.catch_up(pages, number % 3))
        for number, reader in enumerate(readers):
            assert reader.ids == list(range(number % 3, FULL))
        assert len(pages.kept) <= segments.KEPT


NOTHING_OF_IT = Selection(
    ("orders",), (), parse_filter('[{"exact":{"type":"nothing-has-this"}}]'), DEFAULT_SHAPE, (0,), False
)


async def test_a_long_search_tells_how_far_it_has_come_and_goes_on_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that matches for a long time: a proxy would take the stream for dead, and it would begin anew."""
    monkeypatch.setattr("gateway.merging.PAGE_RECORDS", 10)
    async with world() as (hub, pages):
        hub.heartbeat = 0.0
        reader = Reader(hub)
        replay = Replay(
            hub,
            pages,
            selection=NOTHING_OF_IT,
            subscriber=reader.subscriber,
            start={0: 0},  # type: ignore[arg-type]
        )
        places = []
        async for chunk in replay.chunks():
            reader.parser.feed(chunk)
            if reader.parser.last_id:
                cursor = Cursor.decode(reader.parser.last_id)
                assert cursor.next == replay.position
                places.append(cursor.next[0])
        assert places == list(range(10, FULL, 10))
        assert {event.name for event in reader.parser.events} == {"cdrs.cursor"}
        assert reader.subscriber.live


async def test_where_the_reader_in_front_leaves_another_one_goes_on() -> None:
    async with world() as (hub, pages):
        pages.gate.clear()
        readers = [Reader(hub) for _ in range(5)]
        tasks = [asyncio.create_task(reader.catch_up(pages, 0)) for reader in readers]
        while not pages.asked:
            await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        pages.gate.set()
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks[1:])
        assert all(reader.ids == list(range(FULL)) for reader in readers[1:])


async def test_what_cannot_be_read_is_told_to_all_of_them_at_once() -> None:
    async with world() as (hub, pages):
        pages.gate.clear()
        pages.error = Unavailable("no node", retry_after=1)
        tasks = [asyncio.create_task(Reader(hub).catch_up(pages, 0)) for _ in range(5)]
        while not pages.asked:
            await asyncio.sleep(0)
        pages.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 5
        assert pages.asked == 1
        pages.error = None
        reader = Reader(hub)
        await reader.catch_up(pages, 0)
        assert reader.ids == list(range(FULL))


async def test_what_is_kept_for_others_is_let_go_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "KEPT_SECONDS", 0.01)
    async with world() as (hub, pages):
        reader = Reader(hub)
        await reader.catch_up(pages, 0)
        async with asyncio.timeout(10):
            while len(pages.kept):
                await asyncio.sleep(0.005)
        view = reader.subscriber.view
        assert view is not None
        happen(hub, FULL, FULL + 5)
        async with asyncio.timeout(10):
            while view.first < view.end:
                await asyncio.sleep(0.005)
        assert reader.ids == list(range(FULL + 5))


async def test_what_is_pushed_out_is_let_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "KEPT", 1)
    async with world() as (hub, pages):
        first = Reader(hub)
        hub.join(first.subscriber, ORDERS)
        old = weakref.ref(pages.segment(first.subscriber, ORDERS, {0: 0}))
        second = Reader(hub)
        hub.join(second.subscriber, ORDERS)
        pages.segment(second.subscriber, ORDERS, {0: 5})
        gc.collect()
        assert len(pages.kept) == 1
        assert old() is None, "a timer holds it"
