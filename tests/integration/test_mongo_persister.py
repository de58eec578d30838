"""A log carried into MongoDB by the persisters of two nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from mongo_adapter import DATABASE, DRIVERS, Driver, empty, open_store, plain_client
from new_events import events, read
from node_world import running

from cdrs.persist import Persister
from cdrs.tail import Tail
from shared.backends.embedded.log import open_log
from shared.backends.mongo.store import MongoStore
from shared.clock import SystemClock
from shared.ports import EventLog
from shared.records import PageQuery
from shared.settings import LogSettings, NodeSettings, PersistSettings

RING = 256


@asynccontextmanager
async def node(log: EventLog, store: MongoStore, *, preferred: bool) -> AsyncGenerator[Persister]:
    tail = Tail(log, store, NodeSettings(ring_records=RING), lambda *_: None)
    settings = PersistSettings(batch_records=500, linger=0.01, takeover=0.5)
    persister = Persister(log, store, tail, settings, SystemClock(), window=1024, preferred=lambda _: preferred)
    async with running(tail.run), running(persister.run):
        yield persister


async def settled(log: EventLog, store: MongoStore) -> None:
    async with asyncio.timeout(60):
        while await store.checkpoints() != await log.ends():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_the_store_gets_all_whoever_is_there(driver: Driver, tmp_path: Path) -> None:
    empty()
    async with (
        open_log(tmp_path, LogSettings(partitions=3), SystemClock()) as (log, _),
        open_store(log.epoch, driver=driver) as one,
        open_store(log.epoch, driver=driver) as two,
    ):
        # More than a ring holds, before anybody is there: it is read from the log.
        await log.append(0, events(0, 3000), base=0)
        async with node(log, two, preferred=False):
            async with node(log, one, preferred=True) as persister:
                for first in range(3000, 5000, 100):
                    await log.append(first // 100 % 3, events(first, first + 100), base=0)
                await settled(log, one)
                async with asyncio.timeout(10):
                    while set(persister.lag.values()) != {0}:
                        await asyncio.sleep(0.01)
            # The preferred node is gone; the other one notices.
            await log.append(1, events(5000, 5600), base=0)
            await settled(log, two)
        for partition, end in (await log.ends()).items():
            page = await one.page(PageQuery(partition, 0, end, 10_000, 2**30))
            assert page.records == await read(log, partition)
            assert await one.damage(partition, 0, end) == []
        info = await one.stream("orders")
        assert info is not None
        assert info.events == 5600 == plain_client()[DATABASE].events.count_documents({})
