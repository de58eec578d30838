"""The MongoDB store when its primary dies: nothing persisted is lost, nothing doubled, and it goes on by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from engine_set import EngineSet, expendable
from mongo_adapter import DATABASE, DRIVERS, Driver, empty, open_store, plain_client
from new_events import event
from pymongo.errors import AutoReconnect, OperationFailure

from shared.backends.mongo.store import MongoStore
from shared.errors import CdrsError, OutcomeUnknown, Unavailable
from shared.position import Epoch
from shared.records import FeedBatch, PageQuery, Record

EPOCH = Epoch.create()
BATCH = 200
STEPS = 4
PARTITIONS = 3
ONE_AND_SLOWLY_THE_OTHER = [DRIVERS[0], *(pytest.param(other, marks=pytest.mark.slow) for other in DRIVERS[1:])]


def records(partition: int, start: int, stop: int) -> list[Record]:
    found: list[Record] = []
    for offset in range(start, stop):
        e = event(f"{partition}-{offset}", stream=f"s{offset % 3}")
        found.append(
            Record(partition, offset, 1_700_000_000_000 + offset, e.identity, e.stream, None, e.value, 0, 1, 0)
        )
    return found


class Writer:
    """Persists one partition for as long as it is let, again after each error, and notes what it was promised."""

    def __init__(self, store: MongoStore, partition: int) -> None:
        self.store = store
        self.partition = partition
        self.promised = 0
        self.errors: list[CdrsError] = []
        self.gap = 0.0

    async def run(self, enough: asyncio.Event) -> None:
        last = time.monotonic()
        while not enough.is_set():
            at = self.promised
            batch = FeedBatch(self.partition, at, at + BATCH, records(self.partition, at, at + BATCH))
            try:
                await self.store.persist(batch)
            except (Unavailable, OutcomeUnknown) as error:
                self.errors.append(error)
                await asyncio.sleep(0.05)
                continue
            self.promised = batch.next
            now = time.monotonic()
            self.gap, last = max(self.gap, now - last), now


async def advanced(writers: list[Writer], by: int) -> None:
    wanted = [writer.promised + by for writer in writers]
    async with asyncio.timeout(60):
        while any(writer.promised < want for writer, want in zip(writers, wanted, strict=True)):
            await asyncio.sleep(0.01)


@pytest.fixture
def servers() -> EngineSet:
    return expendable()


@pytest.mark.parametrize("driver", ONE_AND_SLOWLY_THE_OTHER)
async def test_the_primary_is_killed_while_two_nodes_persist(driver: Driver, servers: EngineSet) -> None:
    async def kill(writers: list[Writer]) -> str:
        killed = (await servers.run("kill", "mongo-primary")).strip()
        try:
            await advanced(writers, 5 * BATCH)
        finally:
            await servers.run("start", "mongo")
        return f"{killed} killed"

    await keeps_its_promises_while(kill, driver)


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
async def test_the_primary_steps_down_again_and_again(driver: Driver) -> None:
    async def step_down(writers: list[Writer]) -> str:
        primaries: list[str] = []
        for _ in range(STEPS):
            primaries.append(await asyncio.to_thread(steps_down))
            await advanced(writers, 2 * BATCH)
        return f"{', '.join(primaries)} stepped down"

    await keeps_its_promises_while(step_down, driver)


def steps_down() -> str:
    """Which one it was."""
    client = plain_client()
    address = client.primary or ("none", 0)
    with suppress(AutoReconnect, OperationFailure):  # it closes connections; or nobody has caught up yet
        client.admin.command("replSetStepDown", 3, secondaryCatchUpPeriodSecs=2)
    return f"{address[0]}:{address[1]}"


async def keeps_its_promises_while(disturb: Callable[[list[Writer]], Awaitable[str]], driver: Driver) -> None:
    """Two nodes persist three partitions; then what they were promised is all there, once."""
    empty()
    async with open_store(EPOCH, driver=driver) as one, open_store(EPOCH, driver=driver) as two:
        writers = [Writer(store, partition) for store in (one, two) for partition in range(PARTITIONS)]
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for writer in writers:
                group.create_task(writer.run(enough))
            await advanced(writers, 5 * BATCH)
            try:
                what = await disturb(writers)
            finally:
                enough.set()
        print(f"\n{driver}: {what}; longest gap {max(w.gap for w in writers):.1f} s, "
              f"{sum(len(w.errors) for w in writers)} calls failed")  # fmt: skip
        checkpoints = await one.checkpoints()
        documents = plain_client()[DATABASE].events
        for partition in range(PARTITIONS):
            promised = max(writer.promised for writer in writers if writer.partition == partition)
            assert checkpoints[partition] == promised
            assert await two.damage(partition, 0, promised) == []
            page = await one.page(PageQuery(partition, 0, promised, 10**6, 2**40))
            found = page.records
            while page.next < promised:
                page = await one.page(PageQuery(partition, page.next, promised, 10**6, 2**40))
                found += page.records
            assert found == records(partition, 0, promised)
        total = sum(checkpoints.values())
        assert documents.count_documents({}) == total
        streams = await one.streams(after="", limit=10)
        assert sum(info.events for info in streams) == total


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
async def test_reads_and_look_ups_come_back_by_themselves(driver: Driver, servers: EngineSet) -> None:
    empty()
    async with open_store(EPOCH, driver=driver) as store:
        await store.persist(FeedBatch(0, 0, BATCH, records(0, 0, BATCH)))
        await servers.run("kill", "mongo-primary")
        try:
            async with asyncio.timeout(60):
                while True:
                    try:
                        page = await store.page(PageQuery(0, 0, BATCH, 1000, 2**30))
                        found = await store.lookup(0, [event("0-7", stream="s1"), event("0-x", stream="s1")])
                        break
                    except Unavailable:
                        await asyncio.sleep(0.05)
        finally:
            await servers.run("start", "mongo")
        assert page.records == records(0, 0, BATCH)
        assert [duplicate.offset for duplicate in found.values()] == [7]
