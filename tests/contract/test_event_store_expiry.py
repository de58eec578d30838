"""`ExpiringStore.expire`: what is deleted, what is told of it, and what is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from adapters import STORE_ADAPTERS, LogAdapter
from new_events import event, events

from shared.offers import ExpiringStore
from shared.ports import EventLog, EventStore
from shared.records import Duplicate, Expiry, PageQuery

NEVER = 2**60
BIG = 2**30


@pytest.fixture(params=STORE_ADAPTERS)
async def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LogAdapter]:
    adapter = STORE_ADAPTERS[request.param](tmp_path)
    yield adapter
    await adapter.remove()


async def append(log: EventLog, store: EventStore, partition: int, first: int, stop: int) -> None:
    for at in range(first, stop, 50):
        await log.append(partition, events(at, min(at + 50, stop)), base=0)
    async with asyncio.timeout(20):
        while await store.checkpoints() != await log.ends():
            await asyncio.sleep(0.01)


async def border(store: EventStore) -> int:
    """A time between what is there and what comes."""
    times = [await store.append_time(p, end - 1) or 0 for p, end in (await store.checkpoints()).items() if end]
    await asyncio.sleep(0.005)
    return max(times) + 1


async def expire(store: ExpiringStore, *, before_ms: int, now_ms: int = 1, until_ms: int = NEVER) -> None:
    for _ in range(100):
        if not await store.expire(Expiry(now_ms, before_ms, 0, until_ms)):
            return
    raise AssertionError("it never ends")


def everything(partition: int = 0, start: int = 0, stop: int = BIG, streams: list[str] | None = None) -> PageQuery:
    return PageQuery(partition, start, stop, 10_000, BIG, streams)


async def test_what_is_older_goes_and_the_floor_says_so(log: EventLog, store: EventStore) -> None:
    await append(log, store, 0, 0, 400)
    await append(log, store, 1, 1000, 1100)
    then = await border(store)
    await append(log, store, 0, 400, 500)
    await expire(store, before_ms=then)
    assert await store.starts() == {0: 400, 1: 100, 2: 0}
    assert await store.checkpoints() == await log.ends() == {0: 500, 1: 100, 2: 0}
    for streams in (None, ["orders"]):
        page = await store.page(everything(streams=streams))
        assert [record.offset for record in page.records] == list(range(400, 500))
        assert (page.deleted, page.next, page.missing) == ([(0, 400)], 500, [])
        page = await store.page(everything(stop=200, streams=streams))
        assert (page.records, page.next, page.deleted) == ([], 200, [(0, 200)])
        page = await store.page(everything(1, streams=streams))
        assert (page.records, page.next, page.deleted) == ([], 100, [(0, 100)])
        page = await store.page(PageQuery(0, 0, 450, 1000, BIG, streams, backwards=True))
        assert [record.offset for record in page.records] == list(range(449, 399, -1))
        assert (page.next, page.missing) == (0, [])
        page = await store.page(PageQuery(0, 0, 300, 1000, BIG, streams, backwards=True))
        assert (page.records, page.next) == ([], 0)


async def test_what_is_left_answers_other_questions(log: EventLog, store: EventStore) -> None:
    await append(log, store, 0, 0, 200)
    then = await border(store)
    await append(log, store, 0, 200, 300)
    await expire(store, before_ms=then)
    assert (await store.offset_at(0))[0] == 200
    assert await store.append_time(0, 150) is None
    assert await store.append_time(0, 250) is not None
    assert list(await store.find("orders", "150", None)) == []
    assert len(await store.find("orders", "250", None)) == 1
    found = await store.stream("orders")
    assert found is not None
    assert (found.events, found.last) == (100, {0: 299})


async def test_the_end_stays_where_everything_is_deleted(log: EventLog, store: EventStore, adapter: LogAdapter) -> None:
    await append(log, store, 0, 0, 120)
    await expire(store, before_ms=await border(store))
    assert (await store.starts())[0] == (await log.ends())[0] == 120
    async with adapter.open() as (again, _):
        assert (await again.ends())[0] == 120
    await append(log, store, 0, 120, 130)
    page = await store.page(everything())
    assert [record.offset for record in page.records] == list(range(120, 130))
    assert page.deleted == [(0, 120)]


async def test_identities_outlive_their_events_and_are_forgotten(log: EventLog, store: EventStore) -> None:
    await append(log, store, 0, 0, 200)
    times = {offset: await store.append_time(0, offset) for offset in (7, 150)}
    await expire(store, before_ms=await border(store), until_ms=5000)
    copy, other = event("7"), event("150", data=b"2")
    known = {
        copy.identity: Duplicate(0, 7, times[7] or 0, same_body=True),
        other.identity: Duplicate(0, 150, times[150] or 0, same_body=False),
    }
    assert await store.lookup(0, [copy, other, event("new")]) == known
    if log.decides_identity:
        assert await log.append(0, [copy, other], base=0) == list(known.values())
        assert (await log.ends())[0] == 200
    await expire(store, before_ms=0, now_ms=5001)
    assert await store.lookup(0, [copy, other]) == {}
    await append(log, store, 0, *((7, 8) if store.is_log else (200, 201)))  # another log knows it for ever
    assert [record.offset for record in (await store.page(everything())).records] == [200]
    assert (await store.starts())[0] == 200


async def test_two_that_delete_at_once(log: EventLog, store: EventStore, adapter: LogAdapter) -> None:
    await append(log, store, 0, 0, 400)
    await append(log, store, 2, 1000, 1200)
    then = await border(store)
    await append(log, store, 0, 400, 410)
    async with adapter.open() as (_, other):
        assert other is not None
        await asyncio.gather(expire(store, before_ms=then), expire(other, before_ms=then))
        assert await store.starts() == await other.starts() == {0: 400, 1: 0, 2: 200}
    found = await store.stream("orders")
    assert found is not None
    assert found.events == 10


async def test_nothing_goes_without_a_bound(log: EventLog, store: EventStore) -> None:
    await append(log, store, 0, 0, 60)
    assert not await store.expire(Expiry(NEVER, 0, 0, NEVER))
    assert len((await store.page(everything())).records) == 60
