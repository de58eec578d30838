"""Retention in MongoDB: what only this adapter must promise beyond the contract. Against a real replica set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from unittest import mock

import bson
import pytest
from mongo_adapter import DATABASE, Driver, database_url, empty, open_store, plain_client
from new_events import event

from shared.backends.mongo.documents import SHADOW_BYTES, partition_key, position_key
from shared.backends.mongo.expiring import PIECE, Expiring, choose, oldest_of
from shared.backends.mongo.opening import open_mongo_epochs
from shared.backends.mongo.store import MongoStore
from shared.backends.mongo.succession import Epochs
from shared.clock import SystemClock
from shared.errors import OutcomeUnknown
from shared.partitioning import partition_of
from shared.position import Epoch
from shared.records import Expiry, FeedBatch, HistoryPage, PageQuery, Record, fingerprint
from shared.settings import MongoSettings

EPOCH = Epoch.create()
DRIVER: Driver = "motor"
KEY = partition_key(EPOCH, 0)
BASE = 1_700_000_000_000
BIG = 2**40
NEVER = 2**60
HIDDEN = 7
"""Every so many offsets there is a stub, in partition 0."""


def record(offset: int, *, partition: int = 0, size: int = 1) -> Record:
    sent = event(f"{partition}.{offset}", stream=f"s{offset % 3}", data=b'"' + b"x" * size + b'"')
    return Record(
        partition, offset, BASE + offset, sent.identity, sent.stream, sent.key, sent.value, sent.data_at,
        int(sent.kind), sent.accepted_ms,
    )  # fmt: skip


def shown(start: int, stop: int, partition: int = 0) -> list[int]:
    return [offset for offset in range(start, stop) if partition or offset % HIDDEN]


def batch(start: int, stop: int, *, partition: int = 0, size: int = 1) -> FeedBatch:
    records = [record(offset, partition=partition, size=size) for offset in shown(start, stop, partition)]
    return FeedBatch(partition, start, stop, records)


def until(offset: int, *, max_bytes: int = 0, now_ms: int = 1) -> Expiry:
    """All below this offset goes."""
    return Expiry(now_ms, BASE + offset, max_bytes, NEVER)


async def expire(store: MongoStore, expiry: Expiry) -> None:
    for _ in range(50):
        if not await store.expire(expiry):
            return
    raise AssertionError("it never ends")


async def counts(store: MongoStore) -> int:
    return sum(info.events for info in await store.streams(after="", limit=10))


@pytest.fixture
async def store() -> AsyncIterator[MongoStore]:
    empty()
    async with open_store(EPOCH, driver=DRIVER) as store:
        await store.persist(batch(0, 1000))
        yield store


async def test_what_is_left_is_what_copies_are_known_by(store: MongoStore) -> None:
    await expire(store, until(500))
    key = partition_key(EPOCH, 0)
    found = plain_client()[DATABASE].events.find({}, sort=[("_id", 1)]).to_list()
    below = [document for document in found if document["_id"] < position_key(key, 500)]
    assert [document["_id"] for document in below] == [position_key(key, offset) for offset in shown(0, 500)]
    last = record(499)
    assert below[-1] == {
        "_id": position_key(key, 499), "p": key, "i": last.identity, "h": fingerprint(None, last.value),
        "w": last.append_ms, "u": NEVER,
    }  # fmt: skip
    assert len(bson.encode(below[-1])) == SHADOW_BYTES
    assert len(found) - len(below) == 500
    assert plain_client()[DATABASE].floors.find_one({"_id": key}) == {
        "_id": key, "next": 500, "cleared": 500, "shadows": len(below),
    }  # fmt: skip


@pytest.mark.parametrize(("partition", "streams"), [(0, None), (1, ["s1", "s2"])])
async def test_another_process_does_not_know_the_floor_yet(
    store: MongoStore, partition: int, streams: list[str] | None
) -> None:
    await store.persist(batch(0, 1000, partition=1))
    async with open_store(EPOCH, driver=DRIVER) as other:
        assert (await other.page(PageQuery(partition, 0, 100, 10, BIG, streams))).deleted == []
        await expire(store, until(600))
        page = await other.page(PageQuery(partition, 50, 1000, 10_000, BIG, streams))
        kept = [o for o in shown(600, 1000, partition) if streams is None or f"s{o % 3}" in streams]
        assert [r.offset for r in page.records] == kept
        assert (page.next, page.deleted, page.missing) == (1000, [(50, 600)], [])
    for start, stop in ((50, 1000), (50, 300)):
        async with open_store(EPOCH, driver=DRIVER) as other:
            page = await other.page(PageQuery(partition, start, stop, 10_000, BIG, streams, backwards=True))
            assert [r.offset for r in page.records] == (kept[::-1] if stop == 1000 else [])
            assert (page.next, page.deleted, page.missing) == (start, [(start, min(stop, 600))], [])
    async with open_store(EPOCH, driver=DRIVER) as other:
        assert await other.append_time(partition, 599) is None
        assert (await other.offset_at(0))[partition] == 600


@pytest.mark.parametrize(("partition", "streams"), [pytest.param(0, None, marks=pytest.mark.slow), (1, ["s1"])])
async def test_a_floor_that_moves_under_a_reader_hides_nothing(
    store: MongoStore, partition: int, streams: list[str] | None
) -> None:
    """Whatever the reader meets, each offset is either given or told, once."""
    await store.persist(batch(0, 1000, partition=1))
    async with open_store(EPOCH, driver=DRIVER) as reader:
        given: list[int] = []
        told: list[tuple[int, int]] = []
        at = 0
        while at < 400:
            question = PageQuery(partition, at, 400, 8, BIG, streams)
            # The floor comes from behind, and goes past what is just being read.
            page, _ = await asyncio.gather(reader.page(question), store.expire(until(min(at + 60, 350))))
            assert page.missing == []
            assert all(first >= at and stop <= page.next for first, stop in page.deleted)
            given += [r.offset for r in page.records]
            told += page.deleted
            at = page.next
    wanted = [o for o in shown(0, 400, partition) if streams is None or f"s{o % 3}" in streams]
    lost = [o for o in wanted if any(first <= o < stop for first, stop in told)]
    assert lost
    assert sorted([*given, *lost]) == wanted


@pytest.mark.parametrize("step", ["_raise", "_clear", "_mark"])
async def test_one_that_dies_at_it_is_followed_by_another(store: MongoStore, step: str) -> None:
    plain = getattr(Expiring, step)

    async def dies(*args: object) -> None:
        if step != "_clear":
            await plain(*args)
        raise OutcomeUnknown("dead")

    with mock.patch.object(Expiring, step, dies), pytest.raises(OutcomeUnknown):
        await store.expire(until(600))
    async with open_store(EPOCH, driver=DRIVER) as other:
        # While nothing is gone, whoever does not know the floor yet may be given all; else the rest.
        page = await other.page(PageQuery(0, 0, 1000, 10_000, BIG))
        first = 0 if step != "_mark" else PIECE
        assert ([r.offset for r in page.records], page.deleted) == (shown(first, 1000), [(0, first)] if first else [])
        for streams in (["s1"], None):
            page = await other.page(PageQuery(0, 0, 1000, 10_000, BIG, streams))
            assert page.deleted == [(0, PIECE)]
        await expire(other, until(600))
        assert await counts(other) == len(shown(600, 1000))
    state = plain_client()[DATABASE].floors.find_one({"_id": KEY}) or {}
    assert (state["next"], state["cleared"], state["shadows"]) == (600, 600, len(shown(0, 600)))


async def test_many_at_once_count_once(store: MongoStore) -> None:
    for at in range(1000, 3000, 1000):
        await store.persist(batch(at, at + 1000))
    async with open_store(EPOCH, driver=DRIVER) as second, open_store(EPOCH, driver=DRIVER) as third:
        stops = ((store, 2100), (second, 2600), (third, 900))
        await asyncio.gather(*[expire(each, until(stop)) for each, stop in stops])
        await expire(store, until(2600))
        assert await counts(third) == len(shown(2600, 3000))
        assert (await third.starts())[0] == 2600
    state = plain_client()[DATABASE].floors.find_one({"_id": KEY}) or {}
    assert (state["cleared"], state["shadows"]) == (2600, len(shown(0, 2600)))
    events = plain_client()[DATABASE].events
    assert events.count_documents({"u": {"$exists": True}}) == len(shown(0, 2600))
    await expire(store, Expiry(NEVER + 1, 0, 0, NEVER))
    state = plain_client()[DATABASE].floors.find_one({"_id": KEY}) or {}
    assert (state["gone"], state["shadows"], events.count_documents({})) == (2600, 0, 400)


@pytest.mark.slow
async def test_bytes_bound_what_is_kept_over_all_partitions(store: MongoStore) -> None:
    # Partition 1 is the younger one: it stays.
    await store.persist(batch(1000, 1100, partition=0, size=20_000))
    young = [record(offset, partition=1, size=20_000) for offset in range(100)]
    later = [Record(1, r.offset, BASE + 9000 + r.offset, *_rest(r)) for r in young]
    await store.persist(FeedBatch(1, 0, 100, later))
    plain_client()[DATABASE].command("validate", "events")  # its size may be off after other tests have killed a mongod
    await expire(store, Expiry(1, 0, 3_000_000, NEVER))
    floors = await store.starts()
    assert 1000 < floors[0] < 1099
    assert floors[1] == 0
    await expire(store, Expiry(1, 0, 1, NEVER))
    assert dict(await store.starts()) == {0: 1099, 1: 99, 2: 0}
    page = await store.page(PageQuery(1, 0, 100, 10, BIG))
    assert page == HistoryPage([later[-1]], 100, [], [(0, 99)])


def _rest(r: Record) -> tuple[object, ...]:
    return r.identity, r.stream, r.key, r.value, r.data_at, r.kind, r.accepted_ms


async def test_second_copies_leave_nothing(store: MongoStore) -> None:
    first = record(1)
    again = Record(0, 1000, BASE + 3000, *_rest(first))
    await store.persist(FeedBatch(0, 1000, 1001, [again]))
    await expire(store, Expiry(1, BASE + 4000, 0, NEVER))
    assert (await store.starts())[0] == 1001
    assert await counts(store) == 0
    found = await store.lookup(0, [event("0.1", stream="s1")])
    assert [(each.offset, each.append_ms) for each in found.values()] == [(1, BASE + 1)]
    assert plain_client()[DATABASE].events.count_documents({}) == len(shown(0, 1000))


async def test_a_new_epoch_goes_on_with_it(store: MongoStore) -> None:
    await expire(store, until(600))
    new = Epoch.create(EPOCH.ordinal + 1)
    async with open_mongo_epochs(database_url(), MongoSettings(driver=DRIVER)) as epochs:
        for _ in range(2):  # it may be repeated
            await epochs.take_over(SystemClock(), EPOCH, new, {0: 1000, 1: 0, 2: 0}, await epochs.succession())
    async with open_store(new, driver=DRIVER) as after:
        assert await after.starts() == {0: 600, 1: 0, 2: 0}
        page = await after.page(PageQuery(0, 0, 1000, 10_000, BIG))
        assert ([r.offset for r in page.records], page.deleted) == (shown(600, 1000), [(0, 600)])
        (found,) = (await after.lookup(0, [event("0.13", stream="s1")])).values()
        assert (found.offset, found.append_ms) == (13, BASE + 13)
        await expire(after, until(705))
        assert await counts(after) == len(shown(705, 1000))
        await expire(after, Expiry(NEVER + 1, 0, 0, NEVER))
        assert plain_client()[DATABASE].events.count_documents({}) == 295


async def outlived(store: MongoStore) -> tuple[Epoch, dict[int, int]]:
    """Of offset 1 its identity alone is left, and its copy, stored beyond the window as the store was away, stands at
    1000. The epoch that shall take over, and the stops."""
    again = Record(0, 1000, BASE + 3000, *_rest(record(1)))
    await store.persist(FeedBatch(0, 1000, 1001, [again]))
    await expire(store, until(600))
    return Epoch.create(EPOCH.ordinal + 1), {0: 1001, 1: 0, 2: 0}


async def test_a_copy_that_outlives_its_original_goes_over_too(store: MongoStore) -> None:
    new, stops = await outlived(store)
    async with open_mongo_epochs(database_url(), MongoSettings(driver=DRIVER)) as epochs:
        for _ in range(2):
            await epochs.take_over(SystemClock(), EPOCH, new, stops, await epochs.succession())
    async with open_store(new, driver=DRIVER) as after:
        page = await after.page(PageQuery(0, 0, 1001, 10_000, BIG))
        assert [r.offset for r in page.records] == [*shown(600, 1000), 1000]
        (found,) = (await after.lookup(0, [event("0.1", stream="s1")])).values()
        assert found.offset == 1


async def test_where_a_copy_went_over_before_its_original_it_stands_for_it(store: MongoStore) -> None:
    """As an attempt of an earlier version left it."""
    new, stops = await outlived(store)
    async with open_mongo_epochs(database_url(), MongoSettings(driver=DRIVER)) as epochs:
        with (
            mock.patch.object(Epochs, "_copy_shadows", mock.AsyncMock()),
            mock.patch.object(Epochs, "_say", mock.AsyncMock(side_effect=OutcomeUnknown("broken off"))),
            pytest.raises(OutcomeUnknown),
        ):
            await epochs.take_over(SystemClock(), EPOCH, new, stops, await epochs.succession())
        await epochs.take_over(SystemClock(), EPOCH, new, stops, await epochs.succession())
    async with open_store(new, driver=DRIVER) as after:
        (found,) = (await after.lookup(0, [event("0.1", stream="s1")])).values()
        assert found.offset == 1000
        (other,) = (await after.lookup(0, [event("0.2", stream="s2")])).values()
        assert other.offset == 2


async def test_what_was_broken_off_while_the_old_epoch_was_dropped_is_finished(store: MongoStore) -> None:
    assert await counts(store) == len(shown(0, 1000))
    new, stops = Epoch.create(EPOCH.ordinal + 1), {0: 1000, 1: 0, 2: 0}
    async with open_mongo_epochs(database_url(), MongoSettings(driver=DRIVER)) as epochs:
        with (
            mock.patch.object(Epochs, "_drop", mock.AsyncMock(side_effect=OutcomeUnknown("broken off"))),
            pytest.raises(OutcomeUnknown),
        ):
            await epochs.take_over(SystemClock(), EPOCH, new, stops, await epochs.succession())
        async with open_store(new, driver=DRIVER) as after:
            await expire(after, Expiry(1, 0, 1, NEVER))  # twice as large for a while, which is no reason to delete
            assert (await after.starts())[0] == 0
            left = await epochs.finish(new, await epochs.succession())
            assert left is not None
            assert (left.epoch, left.stops) == (EPOCH, stops)
            assert await epochs.finish(new, await epochs.succession()) is None
            assert await counts(after) == len(shown(0, 1000))
            assert plain_client()[DATABASE].events.count_documents({}) == 1000
            await expire(after, Expiry(1, 0, 1, NEVER))
            assert (await after.starts())[0] > 0


@pytest.mark.usefixtures("store")
async def test_another_number_of_partitions_is_noticed_by_where_streams_stand() -> None:
    async with open_mongo_epochs(database_url(), MongoSettings(driver=DRIVER)) as epochs:
        for partitions in (1, 2, 12, 48):
            homes = {partition_of(f"s{number}", None, "", partitions=partitions) for number in range(3)}
            assert await epochs.is_at_home(EPOCH, partitions) == (homes == {0})
        assert not await epochs.is_at_home(EPOCH, 48)


class TestChoosing:
    """Pure."""

    def documents(self, *times: int | None) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        for offset, time in enumerate(times):
            timed = {} if time is None else {"t": time}
            found.append({"_id": position_key(KEY, offset), "size": 1000, **timed})
        return found

    def test_what_has_no_time_goes_along(self) -> None:
        for times, went in (((None, 1, None, 5), 3), ((None, 5), 0), ((1, None, None), 3), ((None, None), 0)):
            oldest = oldest_of(0, self.documents(*times), is_cut=False)
            assert choose([oldest], before_ms=5, excess=0).get(0, 0) == went, times
        assert choose([oldest_of(0, self.documents(None, None), is_cut=True)], before_ms=5, excess=0) == {0: 2}

    def test_the_oldest_of_all_goes_for_its_size_and_the_newest_of_each_stays(self) -> None:
        one = oldest_of(0, self.documents(1, 3, 5), is_cut=False)
        two = oldest_of(1, self.documents(2, 4), is_cut=False)
        assert choose([one, two], before_ms=0, excess=1500) == {0: 1, 1: 1}
        assert choose([one, two], before_ms=0, excess=BIG) == {0: 2, 1: 1}
        assert choose([one, two], before_ms=BIG, excess=0) == {0: 3, 1: 2}
        cut = oldest_of(0, self.documents(1, 3), is_cut=True)
        assert choose([cut, oldest_of(1, self.documents(4, 5, 6), is_cut=False)], before_ms=0, excess=BIG) == {0: 1}
