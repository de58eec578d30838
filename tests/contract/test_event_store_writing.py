"""`EventStore`: how nodes fill it, ask it before they append, and make streams known to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from adapters import PARTITIONS, STORE_ADAPTERS, LogAdapter
from new_events import event, events

from shared.errors import StaleStream
from shared.ports import EventLog, EventStore
from shared.records import Duplicate, FeedBatch, PageQuery


@pytest.fixture(params=STORE_ADAPTERS)
async def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LogAdapter]:
    adapter = STORE_ADAPTERS[request.param](tmp_path)
    yield adapter
    await adapter.remove()


async def persisted(log: EventLog, store: EventStore) -> None:
    """Until the store holds what the log does."""
    async with asyncio.timeout(20):
        while await store.checkpoints() != await log.ends():
            await asyncio.sleep(0.01)


async def test_nothing_was_ever_deleted(log: EventLog, store: EventStore) -> None:
    await log.append(0, events(0, 10), base=0)
    await persisted(log, store)
    assert await store.starts() == dict.fromkeys(range(PARTITIONS), 0)


class TestLookup:
    async def test_what_is_stored_is_found_and_nothing_else(self, log: EventLog, store: EventStore) -> None:
        sent = events(0, 500)
        await log.append(1, sent, base=0)
        await persisted(log, store)
        page = await store.page(PageQuery(1, 0, 500, 1000, 2**30))
        found = await store.lookup(1, events(250, 3000))
        assert found == {
            record.identity: Duplicate(1, record.offset, record.append_ms, True) for record in page.records[250:]
        }
        assert await store.lookup(1, events(500, 520)) == {}
        assert await store.lookup(1, []) == {}

    async def test_another_body_or_key_is_told(self, log: EventLog, store: EventStore) -> None:
        one, two, three = event("a"), event("b", key="k"), event("c", key="k")
        await log.append(0, [one, two, three], base=0)
        await persisted(log, store)
        asked = [event("a", data=b"2"), event("b", key="other"), msgspec.structs.replace(three, key=None)]
        found = await store.lookup(0, asked)
        assert [found[e.identity].same_body for e in asked] == [False, False, False]
        assert (await store.lookup(0, [two]))[two.identity].same_body

    async def test_of_a_spread_stream_in_every_partition_it_has(self, log: EventLog, store: EventStore) -> None:
        sent = event("a", key="k", spread=PARTITIONS)
        await log.append(2, [sent], base=0)
        await persisted(log, store)
        found = await store.lookup(0, [event("a", key="elsewhere", spread=PARTITIONS)])
        assert [(d.partition, d.offset, d.same_body) for d in found.values()] == [(2, 0, False)]


class TestAdmit:
    async def test_streams_are_there_afterwards(self, store: EventStore) -> None:
        await store.admit({"a": 1, "b": 2})
        await store.admit({"b": 2, "c": 1})
        found = await store.streams(after="", limit=10)
        assert [(info.name, info.spread, info.events) for info in found] == [("a", 1, 0), ("b", 2, 0), ("c", 1, 0)]

    async def test_another_spread_is_refused(self, adapter: LogAdapter, store: EventStore) -> None:
        await store.create_stream("a", spread=2)
        async with adapter.open() as (_, other):
            assert other is not None
            for asked in (store, other):
                with pytest.raises(StaleStream):
                    await asked.admit({"b": 1, "a": 1})
                await asked.admit({"a": 2})

    async def test_at_the_same_time_one_spread_wins(self, adapter: LogAdapter, store: EventStore) -> None:
        async with adapter.open() as (_, other):
            assert other is not None
            outcomes = await asyncio.gather(
                *[(store, other)[n % 2].admit({"new": n + 1, f"own{n}": 1}) for n in range(4)], return_exceptions=True
            )
        assert [type(outcome) for outcome in outcomes].count(StaleStream) == 3
        assert None in outcomes


async def test_persisting_what_is_there_changes_nothing(log: EventLog, store: EventStore) -> None:
    await log.append(0, events(0, 20), base=0)
    await persisted(log, store)
    before = await store.page(PageQuery(0, 0, 20, 100, 2**30)), await store.stream("orders")
    await store.persist(FeedBatch(0, 0, 20, before[0].records))
    await store.persist(FeedBatch(0, 5, 5, []))
    assert before == (await store.page(PageQuery(0, 0, 20, 100, 2**30)), await store.stream("orders"))
    assert (await store.checkpoints())[0] == 20
