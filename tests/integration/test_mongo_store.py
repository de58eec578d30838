"""The MongoDB store: what only it must promise. Against a real replica set."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from mongo_adapter import DATABASE, DRIVERS, Driver, empty, open_store, plain_client
from new_events import event
from pymongo import monitoring

from shared.backends.mongo.documents import partition_key, position_key
from shared.backends.mongo.store import MongoStore
from shared.errors import InternalError
from shared.position import Epoch
from shared.records import FeedBatch, HistoryPage, NewEvent, PageQuery, Record
from shared.wire import encode

EPOCH = Epoch.create()


def record(offset: int, *, stream: str = "orders", identity: int | None = None, partition: int = 0) -> Record:
    sent: NewEvent = event(str(offset if identity is None else identity), stream=stream)
    return Record(
        partition, offset, 1_700_000_000_000 + offset, sent.identity, sent.stream, sent.key, sent.value,
        sent.data_at, int(sent.kind), sent.accepted_ms,
    )  # fmt: skip


def batch(start: int, stop: int, *, without: frozenset[int] = frozenset(), streams: int = 1) -> FeedBatch:
    records = [record(o, stream=f"s{o % streams}") for o in range(start, stop) if o not in without]
    return FeedBatch(0, start, stop, records)


def everything(stop: int, **options: object) -> PageQuery:
    return PageQuery(0, 0, stop, 100_000, 2**40, **options)  # type: ignore[arg-type]


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    empty()
    return request.param


@pytest.fixture
async def store(driver: Driver) -> AsyncIterator[MongoStore]:
    async with open_store(EPOCH, driver=driver) as store:
        yield store


class TestStubs:
    async def test_every_offset_below_the_checkpoint_has_a_document(self, store: MongoStore) -> None:
        hidden = frozenset({0, 3, 4, 9})
        await store.persist(batch(0, 10, without=hidden))
        found = plain_client()[DATABASE].events.find({}, sort=[("_id", 1)]).to_list()
        key = partition_key(EPOCH, 0)
        assert [document["_id"] for document in found] == [position_key(key, offset) for offset in range(10)]
        assert {offset for offset, document in enumerate(found) if set(document) == {"_id", "p"}} == hidden

    async def test_pages_do_not_show_them(self, store: MongoStore) -> None:
        hidden = frozenset(range(40, 160)) | {199}
        await store.persist(batch(0, 200, without=hidden))
        shown = [offset for offset in range(200) if offset not in hidden]
        page = await store.page(everything(200))
        assert ([r.offset for r in page.records], page.next, page.missing) == (shown, 200, [])
        page = await store.page(everything(200, backwards=True))
        assert ([r.offset for r in page.records], page.next, page.missing) == (shown[::-1], 0, [])
        page = await store.page(PageQuery(0, 30, 200, 12, 2**30))
        assert [r.offset for r in page.records] == [*range(30, 40), 160, 161]
        assert page.next == 162

    async def test_a_stretch_without_events_moves_the_checkpoint(self, store: MongoStore) -> None:
        await store.persist(FeedBatch(0, 0, 50, []))
        assert (await store.checkpoints())[0] == 50
        assert await store.page(everything(50)) == HistoryPage([], 50)
        assert await store.append_time(0, 40) is None
        assert (await store.offset_at(0))[0] == 50
        await store.persist(FeedBatch(0, 50, 52, [record(51)]))
        assert (await store.offset_at(0))[0] == 51
        assert await store.append_time(0, 50) is None
        assert await store.append_time(0, 51) == record(51).append_ms


class TestCheckpoint:
    async def test_a_hole_is_refused(self, store: MongoStore) -> None:
        await store.persist(batch(0, 10))
        with pytest.raises(InternalError):
            await store.persist(batch(11, 20))
        assert (await store.checkpoints())[0] == 10

    async def test_several_partitions_at_once_and_the_refused_one_alone_stays(self, store: MongoStore) -> None:
        def of(partition: int, start: int, stop: int) -> FeedBatch:
            found = [record(o, identity=partition * 1000 + o, partition=partition) for o in range(start, stop)]
            return FeedBatch(partition, start, stop, found)

        await store.persist(of(0, 0, 10), of(1, 0, 20), of(2, 0, 5))
        assert await store.checkpoints() == {0: 10, 1: 20, 2: 5}
        info = await store.stream("orders")
        assert info is not None
        assert (info.events, info.last) == (35, {0: 9, 1: 19, 2: 4})
        with pytest.raises(InternalError, match="partition 1"):
            await store.persist(of(0, 10, 15), of(1, 21, 30), of(2, 3, 8))
        assert await store.checkpoints() == {0: 15, 1: 20, 2: 8}
        for partition, end in {0: 15, 1: 20, 2: 8}.items():
            page = await store.page(PageQuery(partition, 0, 100, 100, 2**20))
            assert page.records == of(partition, 0, end).records

    async def test_it_bounds_what_is_told(self, store: MongoStore, driver: Driver) -> None:
        """A writer that died between its documents and the checkpoint left them there."""
        await store.persist(batch(0, 10))
        events = plain_client()[DATABASE].events
        checkpoints = plain_client()[DATABASE].checkpoints
        await store.persist(batch(10, 20))
        checkpoints.update_one({}, {"$set": {"next": 10}})
        async with open_store(EPOCH, driver=driver) as fresh:
            assert events.count_documents({}) == 20
            assert [r.offset for r in (await fresh.page(everything(50))).records] == list(range(10))
            assert (await fresh.page(everything(50))).next == 10
            assert list(await fresh.find("s0", "15", None)) == []
            assert len(await fresh.find("s0", "5", None)) == 1
            assert (await fresh.offset_at(record(15).append_ms))[0] == 10
            assert await fresh.append_time(0, 15) == record(9).append_ms
            await fresh.persist(batch(10, 20))
            assert len(await fresh.find("s0", "15", None)) == 1
            info = await fresh.stream("s0")
            assert info is not None
            assert info.events == 20

    async def test_another_epoch_knows_nothing_of_it(self, store: MongoStore, driver: Driver) -> None:
        await store.persist(batch(0, 10))
        async with open_store(Epoch(EPOCH.ordinal + 1, EPOCH.random), driver=driver) as other:
            assert set((await other.checkpoints()).values()) == {0}
            assert await other.page(everything(10)) == HistoryPage([], 0)
            await other.persist(batch(0, 3))
            info = await other.stream("s0")
        assert info is not None
        assert (info.events, info.last) == (13, {0: 2})


class TestSeveralWriters:
    async def test_a_race_stores_and_counts_once(self, store: MongoStore, driver: Driver) -> None:
        """Four writers carry the same log, each in pieces of its own, and start over here and there."""
        hidden = frozenset(range(7, 3000, 13))
        stop = 3000

        async def write(own: MongoStore, seed: int) -> None:
            rng = random.Random(seed)
            while (at := (await own.checkpoints())[0]) < stop:
                at = max(at - rng.choice((0, 0, 50, 400)), 0)
                for _ in range(rng.randrange(1, 4)):
                    end = min(at + rng.randrange(1, 500), stop)
                    if end > at:
                        await own.persist(batch(at, end, without=hidden, streams=5))
                    at = end

        async with open_store(EPOCH, driver=driver) as other:
            await asyncio.gather(*[write((store, other)[n % 2], n) for n in range(4)])
        shown = [offset for offset in range(stop) if offset not in hidden]
        page = await store.page(everything(stop))
        assert [r.offset for r in page.records] == shown
        assert page.records == [record(o, stream=f"s{o % 5}") for o in shown]
        assert plain_client()[DATABASE].events.count_documents({}) == stop
        for number in range(5):
            own = [offset for offset in shown if offset % 5 == number]
            info = await store.stream(f"s{number}")
            assert info is not None
            assert (info.events, info.last, info.last_ms) == (len(own), {0: own[-1]}, record(own[-1]).append_ms)

    async def test_a_second_copy_is_shown_but_never_found_instead_of_the_first(self, store: MongoStore) -> None:
        """Two visible records of one identity exist only where look-ups in the store were skipped for a while."""
        first, again = record(2), record(30, identity=2)
        await store.persist(FeedBatch(0, 0, 20, [first, record(5)]))
        for _ in range(2):  # the second time as another writer would
            await store.persist(FeedBatch(0, 20, 40, [record(25), again]))
            store._known[0] = 0
        assert [r.offset for r in (await store.page(everything(40))).records] == [2, 5, 25, 30]
        assert (await store.page(everything(40))).records[-1] == again
        assert [r.offset for r in await store.find("orders", "2", None)] == [2]
        found = await store.lookup(0, [event("2")])
        assert [d.offset for d in found.values()] == [2]


class TestDamage:
    async def test_a_missing_document_is_told(self, store: MongoStore) -> None:
        await store.persist(batch(0, 300, without=frozenset({10, 11})))
        assert await store.damage(0, 0, 300) == []
        key = partition_key(EPOCH, 0)
        gone = [11, 12, 13, 200, 299]
        plain_client()[DATABASE].events.delete_many({"_id": {"$in": [position_key(key, offset) for offset in gone]}})
        ranges = [(11, 14), (200, 201), (299, 300)]
        assert await store.damage(0, 0, 1000) == ranges
        assert await store.damage(0, 12, 200) == [(12, 14)]
        assert (await store.page(everything(300))).missing == ranges
        assert (await store.page(everything(300, backwards=True))).missing == ranges
        assert (await store.page(PageQuery(0, 5, 300, 6, 2**30))).missing == [(11, 14)]
        assert (await store.page(PageQuery(0, 20, 200, 500, 2**30))).missing == []

    async def test_what_retention_deleted_is_no_damage(self, store: MongoStore) -> None:
        await store.persist(batch(0, 100))
        key = partition_key(EPOCH, 0)
        plain_client()[DATABASE].floors.insert_one({"_id": key, "next": 40})
        plain_client()[DATABASE].events.delete_many({"_id": {"$lt": position_key(key, 30)}})
        plain_client()[DATABASE].events.delete_many({"_id": position_key(key, 50)})
        assert (await store.starts())[0] == 40
        page = await store.page(everything(100))
        assert page.missing == [(50, 51)]
        assert await store.damage(0, 0, 100) == [(50, 51)]


class TestCancelledCallers:
    async def test_they_do_not_cancel_what_runs(self, store: MongoStore) -> None:
        """A storm of clients that leave: every call comes to its end, and the store goes on as if nothing was."""
        await store.persist(batch(0, 500))
        for round_ in range(10):
            tasks = [asyncio.create_task(store.page(everything(500))) for _ in range(20)]
            tasks.append(asyncio.create_task(store.persist(batch(500 + round_ * 10, 510 + round_ * 10))))
            await asyncio.sleep(0.001 * round_)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            at = (await store.checkpoints())[0]
            await store.persist(batch(at, 510 + round_ * 10))
        async with asyncio.timeout(10):
            while store._calls.running:
                await asyncio.sleep(0.005)
        page = await store.page(everything(600))
        assert ([r.offset for r in page.records], page.missing) == (list(range(600)), [])
        assert plain_client()[DATABASE].events.count_documents({}) == 600

    async def test_they_cost_no_connections(self, driver: Driver) -> None:
        """Both drivers close the connection of a call that is cancelled under their hands (PYTHON-4745)."""
        seen = ClosedConnections()
        monitoring.register(seen)
        async with open_store(EPOCH, driver=driver) as store:
            await store.persist(batch(0, 500))
            for _ in range(5):
                tasks = [asyncio.create_task(store.page(everything(500))) for _ in range(30)]
                async with asyncio.timeout(10):
                    while store._calls.running < 30:
                        await asyncio.sleep(0)
                await asyncio.sleep(0.005)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                while store._calls.running:
                    await asyncio.sleep(0.005)
            assert seen.closed == 0
        assert seen.closed > 0


class ClosedConnections(monitoring.ConnectionPoolListener):
    """Counts the connections that clients made since close."""

    def __init__(self) -> None:
        self.closed = 0

    def connection_closed(self, event: object) -> None:
        self.closed += 1

    def _other(self, event: object) -> None: ...

    pool_created = pool_ready = pool_cleared = pool_closed = connection_created = connection_ready = _other
    connection_check_out_started = connection_check_out_failed = connection_checked_out = connection_checked_in = _other


async def test_bytes_bound_what_is_read(store: MongoStore) -> None:
    big = b'"' + b"x" * 400_000 + b'"'
    records = [
        Record(0, o, 1_700_000_000_000, e.identity, e.stream, None, e.value, e.data_at, 1, 0)
        for o in range(60)
        for e in [event(str(o), data=big)]
    ]
    for at in range(0, 60, 20):
        await store.persist(FeedBatch(0, at, at + 20, records[at : at + 20]))
    page = await store.page(PageQuery(0, 0, 60, 1000, 1_000_000))
    assert [r.offset for r in page.records] == [0, 1, 2]
    assert page.next == 3
    page = await store.page(everything(60))
    assert page.records == records


async def test_answers_can_be_sent_to_a_gateway(store: MongoStore) -> None:
    """The driver's own kind of number cannot be encoded; it shows where 32 bits do not suffice."""
    await store.create_stream("s0", spread=1)
    await store.persist(batch(0, 3))
    answers = [
        await store.page(everything(3)),
        await store.find("s0", "1", None),
        await store.streams(after="", limit=9),
        await store.checkpoints(),
        await store.starts(),
        await store.offset_at(1_700_000_000_001),
        await store.append_time(0, 2),
        await store.lookup(0, [event("2", stream="s0")]),
    ]
    for answer in answers:
        assert answer
        encode(answer)
