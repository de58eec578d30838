"""`EventStore`: history, complete below the checkpoint."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from adapters import STORE_ADAPTERS, LogAdapter
from new_events import event, events, read, same

from shared.errors import StaleStream, StreamConflict
from shared.ports import EventLog, EventStore
from shared.records import HistoryPage, PageQuery, Record, StreamInfo, former_prefix

BIG = 2**30
UUID7 = "01936f2a-8c4e-7a10-9b3c-5d6e7f809102"


# MongoDB's other driver takes the same calls: all of this has its turn in the whole run, what writes in every run.
SLOWLY = {"mongo-pymongo"}


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOWLY)) for name in STORE_ADAPTERS])
async def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LogAdapter]:
    adapter = STORE_ADAPTERS[request.param](tmp_path)
    yield adapter
    await adapter.remove()


def query(
    start: int,
    stop: int,
    *,
    partition: int = 0,
    limit: int = 1000,
    max_bytes: int = BIG,
    streams: list[str] | None = None,
    backwards: bool = False,
) -> PageQuery:
    return PageQuery(partition, start, stop, limit, max_bytes, streams, backwards)


def offsets(page: HistoryPage) -> list[int]:
    return [record.offset for record in page.records]


async def persisted(log: EventLog, store: EventStore) -> None:
    """Until the store holds what the log does."""
    async with asyncio.timeout(20):
        while await store.checkpoints() != await log.ends():
            await asyncio.sleep(0.01)


@pytest.fixture
async def mixed(log: EventLog, store: EventStore) -> list[Record]:
    """Partition 0 with 900 records of streams s0 (half), s1 … s5 (fewer and fewer), appended in runs of 1 to 150."""
    rng = random.Random(7)
    number = 0
    while number < 900:
        run = min(rng.choice((1, 1, 2, 5, 150)), 900 - number)
        names = rng.choices(range(6), weights=[32, 16, 8, 4, 2, 1], k=run)
        sent = [
            event(str(number + i), stream=f"s{name}", data=b"1" * (number % 90 + 1)) for i, name in enumerate(names)
        ]
        await log.append(0, sent, base=0)
        number += run
    await log.append(1, events(10_000, 10_050), base=0)
    await persisted(log, store)
    return await read(log, 0)


async def test_an_empty_store(store: EventStore) -> None:
    assert set((await store.checkpoints()).values()) == {0}
    assert await store.page(query(0, 100)) == HistoryPage([], 0)
    assert await store.page(query(0, 100, backwards=True)) == HistoryPage([], 0)
    assert list(await store.find("orders", "a", None)) == []
    assert set((await store.offset_at(0)).values()) == {0}
    assert await store.append_time(0, 10) is None
    assert list(await store.streams(after="", limit=10)) == []
    assert await store.stream("orders") is None


async def test_the_checkpoint_covers_what_the_store_gives(log: EventLog, store: EventStore) -> None:
    for number in range(0, 200, 20):
        await log.append(0, events(number, number + 20), base=0)
        checkpoint = (await store.checkpoints())[0]
        page = await store.page(query(0, checkpoint))
        assert offsets(page) == list(range(checkpoint))
    await persisted(log, store)


class TestPage:
    async def test_forwards(self, store: EventStore, mixed: list[Record]) -> None:
        page = await store.page(query(100, 300))
        assert page == HistoryPage(mixed[100:300], 300)

    async def test_backwards_goes_down_from_stop(self, store: EventStore, mixed: list[Record]) -> None:
        page = await store.page(query(100, 300, backwards=True))
        assert page == HistoryPage(mixed[100:300][::-1], 100)

    async def test_a_limit_says_where_to_go_on(self, store: EventStore, mixed: list[Record]) -> None:
        assert await store.page(query(100, 300, limit=7)) == HistoryPage(mixed[100:107], 107)
        backwards = await store.page(query(100, 300, limit=7, backwards=True))
        assert backwards == HistoryPage(mixed[293:300][::-1], 293)

    async def test_the_record_that_crosses_the_byte_bound_is_part_of_it(
        self, store: EventStore, mixed: list[Record]
    ) -> None:
        bound = len(mixed[100].value) + len(mixed[101].value) + 1
        assert offsets(await store.page(query(100, 300, max_bytes=bound))) == [100, 101, 102]
        assert offsets(await store.page(query(100, 300, max_bytes=bound - 1))) == [100, 101]
        assert offsets(await store.page(query(100, 300, max_bytes=0))) == [100]

    async def test_never_at_or_beyond_the_checkpoint(self, store: EventStore, mixed: list[Record]) -> None:
        assert await store.page(query(890, 5000)) == HistoryPage(mixed[890:], 900)
        assert (await store.page(query(890, 5000, backwards=True))).records == mixed[:889:-1]
        assert await store.page(query(2000, 5000)) == HistoryPage([], 900)
        assert (await store.page(query(2000, 5000, backwards=True))).next <= 900

    async def test_an_empty_range(self, store: EventStore, mixed: list[Record]) -> None:
        assert await store.page(query(300, 300)) == HistoryPage([], 300)
        assert await store.page(query(300, 300, backwards=True)) == HistoryPage([], 300)

    async def test_an_unknown_stream_exhausts_the_range(self, store: EventStore, mixed: list[Record]) -> None:
        assert await store.page(query(100, 300, streams=["nobody"])) == HistoryPage([], 300)
        assert await store.page(query(100, 300, streams=["nobody"], backwards=True)) == HistoryPage([], 100)

    async def test_partitions_do_not_mix(self, store: EventStore, mixed: list[Record]) -> None:
        page = await store.page(query(0, 50, partition=1))
        assert {record.partition for record in page.records} == {1}
        assert offsets(page) == list(range(50))
        assert await store.page(query(0, 50, partition=2)) == HistoryPage([], 0)
        assert await store.page(query(0, 50, partition=1, streams=["s0"])) == HistoryPage([], 50)

    async def test_a_neighbours_last_record_is_not_the_first(self, log: EventLog, store: EventStore) -> None:
        for partition in (0, 1, 2):
            await log.append(partition, [event(f"{partition}-{n}") for n in range(3)], base=0)
        await persisted(log, store)
        for backwards in (False, True):
            page = await store.page(query(0, 3, partition=1, limit=1, backwards=backwards))
            assert [(record.partition, record.offset) for record in page.records] == [(1, 2 if backwards else 0)]
        assert await store.append_time(1, 0) is not None

    async def test_any_question_page_by_page(self, store: EventStore, mixed: list[Record]) -> None:
        """Whatever is asked, the pages are complete and end where they say."""
        rng = random.Random(11)
        for _ in range(25):
            start, stop = sorted(rng.sample(range(930), 2))
            names = rng.choice([None, None, ["s0"], ["s5"], ["s1", "s4", "nobody"], [f"s{n}" for n in range(6)]])
            asked = query(
                start,
                stop,
                limit=rng.choice((1, 3, 64, 1000)),
                max_bytes=rng.choice((BIG, BIG, 300, 5000)),
                streams=names,
                backwards=rng.random() < 0.5,
            )
            await self._check(store, asked, mixed)

    async def _check(self, store: EventStore, asked: PageQuery, records: list[Record]) -> None:
        start, stop = min(asked.start, len(records)), min(asked.stop, len(records))
        wanted = [r for r in records[start:stop] if asked.streams is None or r.stream in asked.streams]
        found: list[Record] = []
        for _ in range(1000):
            page = await store.page(asked)
            assert len(page.records) <= asked.limit
            assert sum(len(record.value) for record in page.records[:-1]) < asked.max_bytes
            if asked.backwards:
                assert start <= page.next <= asked.stop
                assert page.records == [r for r in wanted if page.next <= r.offset < asked.stop][::-1]
                asked = query_from(asked, asked.start, page.next)
            else:
                assert asked.start <= page.next <= stop or page.next == stop
                assert page.records == [r for r in wanted if asked.start <= r.offset < page.next]
                asked = query_from(asked, page.next, asked.stop)
            found += page.records
            if page.next == (start if asked.backwards else stop):
                break
        assert found == (wanted[::-1] if asked.backwards else wanted)


def query_from(asked: PageQuery, start: int, stop: int) -> PageQuery:
    return PageQuery(asked.partition, start, stop, asked.limit, asked.max_bytes, asked.streams, asked.backwards)


class TestFind:
    async def test_by_id(self, store: EventStore, mixed: list[Record]) -> None:
        for offset in (0, 1, 63, 64, 500, 899):
            wanted = mixed[offset]
            assert list(await store.find(wanted.stream, str(offset), None)) == [wanted]
            assert list(await store.find(wanted.stream, str(offset), "/tests")) == [wanted]

    async def test_elsewhere_it_is_not(self, store: EventStore, mixed: list[Record]) -> None:
        assert list(await store.find("nobody", "1", None)) == []
        assert list(await store.find(mixed[1].stream, "1", "/else")) == []
        assert list(await store.find(mixed[1].stream, "10000", None)) == []

    async def test_each_source_has_its_own(self, log: EventLog, store: EventStore) -> None:
        await log.append(0, [event("a", source=f"/{n}") for n in range(3)] + [event("a", stream="other")], base=0)
        await persisted(log, store)
        found = await store.find("orders", "a", None)
        assert {record.offset for record in found} == {0, 1, 2}
        (one,) = await store.find("orders", "a", "/1")
        assert one.offset == 1

    async def test_at_most_ten(self, log: EventLog, store: EventStore) -> None:
        await log.append(0, [event("a", source=f"/{n}") for n in range(30)], base=0)
        await persisted(log, store)
        assert len(await store.find("orders", "a", None)) == 10
        assert len(await store.find("orders", "a", "/29")) == 1

    async def test_what_an_earlier_version_stored(self, log: EventLog, store: EventStore) -> None:
        """The identity of a UUID of version 7 was another one then."""
        old, new = event(UUID7, source="/old"), event(UUID7, source="/new")
        former = former_prefix("orders", UUID7) + old.identity[12:]
        assert former != old.identity
        await log.append(0, [msgspec.structs.replace(old, identity=former), new], base=0)
        await persisted(log, store)
        assert [record.offset for record in await store.find("orders", UUID7, None)] == [0, 1]
        for offset, source in enumerate(("/old", "/new")):
            assert [record.offset for record in await store.find("orders", UUID7, source)] == [offset]


class TestTimes:
    @pytest.fixture
    async def spread_out(self, log: EventLog, store: EventStore) -> list[Record]:
        """Records with at least ten different append times."""
        records: list[Record] = []
        while len({record.append_ms for record in records}) < 10:
            first = len(records)
            await log.append(0, events(first, first + 3), base=0)
            records += await read(log, 0, start=first)
        await log.append(2, events(5000, 5001), base=0)
        await persisted(log, store)
        return records

    async def test_offset_at(self, store: EventStore, spread_out: list[Record]) -> None:
        times = [record.append_ms for record in spread_out]
        for moment in {t + d for t in times for d in (-1, 0, 1)}:
            wanted = next((r.offset for r in spread_out if r.append_ms >= moment), len(spread_out))
            found = await store.offset_at(moment)
            assert found[0] == wanted
            assert found[1] == 0
        assert await store.offset_at(0) == {0: 0, 1: 0, 2: 0}
        assert await store.offset_at(times[-1] + 10**9) == await store.checkpoints()

    async def test_append_time(self, store: EventStore, spread_out: list[Record]) -> None:
        for record in spread_out:
            assert await store.append_time(0, record.offset) == record.append_ms
        assert await store.append_time(0, 10**9) == spread_out[-1].append_ms
        assert await store.append_time(1, 10**9) is None


class TestStreams:
    async def test_counts_and_last(self, store: EventStore, mixed: list[Record]) -> None:
        for name in {record.stream for record in mixed}:
            own = [record for record in mixed if record.stream == name]
            info = await store.stream(name)
            assert info is not None
            assert (info.events, info.last, info.last_ms) == (len(own), {0: own[-1].offset}, own[-1].append_ms)
            assert info.spread == 1
            assert info.created_ms <= own[0].append_ms

    async def test_a_stream_in_several_partitions(self, log: EventLog, store: EventStore) -> None:
        for partition in (0, 1, 0, 0):
            ends = await log.ends()
            name = f"{partition}-{ends[partition]}"
            await log.append(partition, [event(name, spread=2)], base=0)
        await persisted(log, store)
        info = await store.stream("orders")
        assert info is not None
        assert (info.events, info.spread, info.last) == (4, 2, {0: 2, 1: 0})

    async def test_duplicates_do_not_count(self, log: EventLog, store: EventStore) -> None:
        if not log.decides_identity:
            pytest.skip("needs a node")
        await log.append(0, [event("a"), event("a")], base=0)
        await log.append(0, [event("a")], base=0)
        await persisted(log, store)
        info = await store.stream("orders")
        assert info is not None
        assert info.events == 1

    async def test_in_byte_order_page_by_page(self, store: EventStore) -> None:
        names = ["B", "a", "a-b", "a.b", "a.b.c", "a_b", "aa", "b", "0"]
        for name in names:
            await store.create_stream(name, spread=1)
        found: list[str] = []
        while page := await store.streams(after=found[-1] if found else "", limit=2):
            assert len(page) <= 2
            found += [info.name for info in page]
        assert found == sorted(names, key=str.encode)

    async def test_creating(self, store: EventStore) -> None:
        info = await store.create_stream("new", spread=3)
        assert info == StreamInfo("new", 3, info.created_ms)
        assert info.created_ms > 1_500_000_000_000
        assert await store.create_stream("new", spread=3) == info
        assert await store.stream("new") == info
        with pytest.raises(StreamConflict):
            await store.create_stream("new", spread=2)

    async def test_creating_what_was_written(self, log: EventLog, store: EventStore) -> None:
        await log.append(0, [event("a", spread=2)], base=0)
        await persisted(log, store)
        assert (await store.create_stream("orders", spread=2)).events == 1
        with pytest.raises(StreamConflict):
            await store.create_stream("orders", spread=1)

    async def test_writing_what_was_created(self, log: EventLog, store: EventStore) -> None:
        await store.create_stream("orders", spread=2)
        with pytest.raises(StaleStream):
            await log.append(0, [event("a", spread=1)], base=0)
        await log.append(0, [event("a", spread=2)], base=0)

    async def test_at_the_same_time_one_wins(self, adapter: LogAdapter, store: EventStore) -> None:
        async with adapter.open() as (_, other):
            outcomes = await asyncio.gather(
                *[(store, other)[n % 2].create_stream("new", spread=n + 1) for n in range(4)], return_exceptions=True
            )
            created = [outcome for outcome in outcomes if isinstance(outcome, StreamInfo)]
            assert len(created) == 1
            assert all(isinstance(o, StreamConflict) for o in outcomes if not isinstance(o, StreamInfo))
            assert await store.stream("new") == await other.stream("new") == created[0]


async def test_pages_hold_what_was_sent(log: EventLog, store: EventStore) -> None:
    sent = [event("a", data=b'"' + b"x" * 200_000 + b'"'), event("b", key="k"), event("c", data=b"null")]
    await log.append(0, sent, base=0)
    await persisted(log, store)
    assert same((await store.page(query(0, 10))).records, sent)


async def test_a_rare_stream_in_a_long_log(log: EventLog, store: EventStore) -> None:
    """One record in a hundred, pages of few: nothing is left out although pages may end early."""
    for first in range(0, 6000, 1500):
        sent = [event(str(n), stream="rare" if n % 100 == 0 else "common") for n in range(first, first + 1500)]
        await log.append(0, sent, base=0)
    await persisted(log, store)
    found: list[int] = []
    at = 0
    while at < 6000:
        page = await store.page(query(at, 6000, streams=["rare"], limit=7))
        found += offsets(page)
        assert page.next > at
        at = page.next
    assert found == list(range(0, 6000, 100))
