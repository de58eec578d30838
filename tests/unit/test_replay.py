"""History out of the gateway's memory: in slices, for any choice of streams, and no more of it kept than is of use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, NoReturn, cast

import orjson
import pytest
from sample_records import batch, record

from gateway import replay, segments
from gateway.hub import Hub
from gateway.replay import HistoryReader, Replay
from gateway.routing import Router
from gateway.subscriber import Subscriber, Writer
from gateway.views import Selection
from shared.clock import SystemClock
from shared.errors import Unavailable
from shared.filters import parse_filter
from shared.position import Epoch
from shared.records import FeedBatch, HistoryPage, PageQuery
from shared.settings import SseSettings
from shared.sse import DEFAULT_SHAPE
from shared.telemetry import Telemetry

FULL = 6000
STREAMS = ("a", "b", "c")


class Nobody:
    """There is no node; whoever asks one fails."""

    def any(self) -> NoReturn:
        raise AssertionError("a node was asked")

    def ranked(self, partition: int) -> NoReturn:
        raise AssertionError(f"a node was asked for partition {partition}")


class Sink:
    """A client that takes nothing by itself."""

    ready = False


@asynccontextmanager
async def world() -> AsyncIterator[tuple[Hub, HistoryReader]]:
    clock, telemetry = SystemClock(), Telemetry(version="test")
    hub = Hub(SseSettings(), clock, telemetry)
    hub.start(Epoch(1, 7), {0: 0})
    hub.sink(batch(*[record(offset, stream=STREAMS[offset % 3]) for offset in range(FULL)]))
    yield hub, HistoryReader(cast("Router", Nobody()), hub, clock, telemetry)


def selection(*streams: str, types: str | None = None) -> Selection:
    wanted = [] if types is None else [{"exact": {"type": types}}]
    return Selection(streams, (), parse_filter(orjson.dumps(wanted).decode()), DEFAULT_SHAPE, (0,), False)


def way(hub: Hub, reader: HistoryReader, wanted: Selection) -> Replay:
    subscriber = Subscriber(cast("Writer", Sink()), b"", remote="", now=0.0, expires=1e12)
    return Replay(hub, reader, selection=wanted, subscriber=subscriber, start={0: 0})


async def events(way: Replay) -> list[str]:
    found = b"".join([chunk async for chunk in way.chunks()])
    return [orjson.loads(line[6:])["cdrsstream"] for line in found.split(b"\n") if line.startswith(b"data: ")]


@pytest.mark.parametrize("many", [1, 8])
async def test_a_search_through_memory_gives_others_their_turns(many: int) -> None:
    """Searches for what is not there, and eight of them together do not take more of a turn than one."""
    turns = 0
    async with world() as (hub, reader), asyncio.timeout(60):
        searches = [
            asyncio.create_task(events(way(hub, reader, selection(*STREAMS, types=f"none-{n}")))) for n in range(many)
        ]
        while not all(search.done() for search in searches):
            turns += 1
            await asyncio.sleep(0)
        assert all(not search.result() for search in searches)
    assert turns >= many * FULL / (replay.OFFSETS_A_TURN + 512)


async def test_several_streams_come_from_memory() -> None:
    async with world() as (hub, reader):
        streams = await events(way(hub, reader, selection("a", "c")))
        assert streams == ["a", "c"] * (FULL // 3)
        taken = way(hub, reader, selection("a", "c"))
        assert await events(taken)
        assert not taken.asked_nodes


async def test_what_memory_lost_while_one_waited_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[PageQuery] = []

    async def ask(self: HistoryReader, query: PageQuery) -> HistoryPage:
        asked.append(query)
        return HistoryPage([], query.stop)

    monkeypatch.setattr(HistoryReader, "_ask", ask)
    async with world() as (hub, reader), asyncio.timeout(10):
        query = PageQuery(0, 0, FULL, 512, 2**20, None)
        first = asyncio.create_task(reader.page(query))
        second, third = asyncio.create_task(reader.page(query)), asyncio.create_task(reader.page(query))
        await asyncio.wait((first, second))
        hub.rings[0].forget(10)
        assert (await first).records
        await third
        assert asked == [query]


async def test_questions_wait_for_their_turn_outside_of_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that takes a while for each must not make those time out that it has not been asked yet."""
    monkeypatch.setattr(replay, "QUESTIONS_AT_ONCE", 2)
    monkeypatch.setattr(replay, "QUEUE_TIMEOUT", 30.0)
    under_way = most = 0

    async def ask(*_: Any, **__: Any) -> HistoryPage:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return HistoryPage([], 5)

    monkeypatch.setattr(replay, "ask", ask)
    async with world() as (hub, reader), asyncio.timeout(10):
        hub.rings[0].forget(10)
        query = PageQuery(0, 0, 5, 512, 2**20, None)
        await asyncio.gather(*[reader.page(query) for _ in range(50)])
        assert most == 2
        monkeypatch.setattr(replay, "QUEUE_TIMEOUT", 0.0)
        outcomes = await asyncio.gather(*[reader.page(query) for _ in range(5)], return_exceptions=True)
        assert [type(outcome) for outcome in outcomes].count(Unavailable) == 3


async def walk(chunks: AsyncGenerator[bytes], steps: int) -> None:
    for _ in range(steps):
        assert await anext(chunks)


async def test_a_slow_reader_keeps_only_what_lies_before_it() -> None:
    async with world() as (hub, reader):
        slow = way(hub, reader, selection("a"))
        async with aclosing(cast("AsyncGenerator[bytes]", slow.chunks())) as chunks:
            await walk(chunks, 4)
            segment = _forget_the_only_one(reader)
            assert segment.size > 3 * segments.CHUNK_BYTES
            await walk(chunks, 1)
            assert segment.size < 2 * segments.CHUNK_BYTES


async def test_two_readers_who_are_left_with_it_both_get_everything() -> None:
    async with world() as (hub, reader):
        ahead, behind = way(hub, reader, selection("a")), way(hub, reader, selection("a"))
        async with (
            aclosing(cast("AsyncGenerator[bytes]", ahead.chunks())) as first,
            aclosing(cast("AsyncGenerator[bytes]", behind.chunks())) as second,
        ):
            await walk(second, 1)
            await walk(first, 6)
            _forget_the_only_one(reader)
            await walk(second, 2)
            await walk(first, 1)
            await walk(second, 3)


async def test_what_is_kept_for_others_is_bounded_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "KEPT_BYTES", 4 * segments.CHUNK_BYTES)
    async with world() as (hub, reader):
        ways: list[AsyncIterator[bytes]] = [way(hub, reader, selection(name)).chunks() for name in STREAMS]
        for chunks in ways:
            await walk(cast("AsyncGenerator[bytes]", chunks), 3)
        assert 0 < sum(segment.size for segment in _kept(reader)) <= segments.KEPT_BYTES
        for chunks in ways:
            await cast("AsyncGenerator[bytes]", chunks).aclose()


def _forget_the_only_one(reader: HistoryReader) -> segments.Segment:
    """As happens after a while."""
    [(key, segment)] = reader._segments._kept.items()  # pyright: ignore[reportPrivateUsage]
    reader._segments._forget(key, segment)  # pyright: ignore[reportPrivateUsage]
    return segment


def _kept(reader: HistoryReader) -> Sequence[segments.Segment]:
    return list(reader._segments._kept.values())  # pyright: ignore[reportPrivateUsage]


async def test_an_empty_ring_answers_without_a_record() -> None:
    async with world() as (hub, reader):
        hub.sink(FeedBatch(0, FULL, FULL + 1, []))
        page = await reader.page(PageQuery(0, FULL, FULL + 1, 512, 2**20, ["a", "b"]))
        assert (list(page.records), page.next) == ([], FULL + 1)
