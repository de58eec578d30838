"""The MongoDB store under contract: the embedded log, carried into it as nodes do."""

from __future__ import annotations

import asyncio
import atexit
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from engine_set import mongo_url
from pymongo import MongoClient
from pymongo.database import Database

from shared.backends.embedded.log import open_log
from shared.backends.mongo.opening import open_mongo_store
from shared.backends.mongo.store import MongoStore
from shared.clock import SystemClock
from shared.errors import CdrsError
from shared.ports import EventLog, EventStore, LogTail
from shared.position import Epoch
from shared.records import Duplicate, FeedBatch, NewEvent
from shared.settings import LogSettings, MongoSettings

Driver = Literal["motor", "pymongo"]
DRIVERS: tuple[Driver, ...] = ("motor", "pymongo")
DATABASE = f"cdrs_test_{os.getpid()}"
COLLECTIONS = ("events", "streams", "checkpoints", "floors")
PARTITIONS = 3

_clients: list[MongoClient[dict[str, Any]]] = []


def plain_client() -> MongoClient[dict[str, Any]]:
    """A blocking client, for looking behind the adapter's back."""
    if not _clients:
        _clients.append(MongoClient(mongo_url(), serverSelectionTimeoutMS=20_000))
        atexit.register(_leave)
    return _clients[0]


def plain_database(env: Mapping[str, str]) -> Database[dict[str, Any]]:
    """What a process with this environment has for its store, by that client."""
    return plain_client()[env["CDRS_STORE__URL"].rpartition("/")[2].partition("?")[0]]


def _leave() -> None:
    with suppress(Exception):
        _clients[0].drop_database(DATABASE)
    _clients[0].close()


def empty() -> None:
    """Remove what earlier tests wrote; collections and indexes stay, which is what takes time to make."""
    for name in COLLECTIONS:
        plain_client()[DATABASE][name].delete_many({})


def database_url() -> str:
    """The URL with the tests' own database."""
    return urlunsplit(urlsplit(mongo_url())._replace(path=f"/{DATABASE}"))


def open_store(
    epoch: Epoch, *, driver: Driver = "motor", partitions: int = PARTITIONS, **settings: Any
) -> AbstractAsyncContextManager[MongoStore]:
    """The store of an epoch, as one more process has it."""
    return open_mongo_store(
        database_url(), MongoSettings(driver=driver, **settings), SystemClock(), epoch=epoch, partitions=partitions
    )


class AdmittingLog:
    """An `EventLog` before which streams are admitted to the store, as a node does."""

    def __init__(self, log: EventLog, store: EventStore) -> None:
        self._log = log
        self._store = store
        self.epoch = log.epoch
        self.partitions = log.partitions
        self.decides_identity = log.decides_identity

    async def append(self, partition: int, events: Sequence[NewEvent], *, base: int) -> Sequence[Duplicate | None]:
        await self._store.admit({event.stream: event.spread for event in events})
        return await self._log.append(partition, events, base=base)

    def tail(self, positions: Mapping[int, int]) -> LogTail:
        return self._log.tail(positions)

    async def ends(self) -> Mapping[int, int]:
        return await self._log.ends()

    async def starts(self) -> Mapping[int, int]:
        return await self._log.starts()


class MongoStoreAdapter:
    """A `LogAdapter` whose store is MongoDB."""

    knows_streams = True

    def __init__(self, folder: Path, driver: Driver) -> None:
        mongo_url()
        self._folder = folder
        self._driver: Driver = driver
        empty()

    def open(self) -> AbstractAsyncContextManager[tuple[EventLog, EventStore]]:
        return self._open("one")

    def open_other(self) -> AbstractAsyncContextManager[tuple[EventLog, EventStore]]:
        return self._open("other")

    async def remove(self) -> None: ...

    @asynccontextmanager
    async def _open(self, name: str) -> AsyncGenerator[tuple[EventLog, EventStore]]:
        async with (
            open_log(self._folder / name, LogSettings(partitions=PARTITIONS), SystemClock()) as (log, _),
            open_store(log.epoch, driver=self._driver) as store,
        ):
            pump = asyncio.create_task(carry(log, store))
            try:
                yield AdmittingLog(log, store), store
            finally:
                pump.cancel()
                await asyncio.wait({pump})


async def carry(log: EventLog, store: EventStore) -> None:
    """Persist whatever is appended, until cancelled."""
    tail = log.tail(await store.checkpoints())
    try:
        while True:
            for batch in await tail.poll(max_records=1000, timeout=1):
                await persisted(store, FeedBatch(batch.partition, batch.start, batch.next, batch.records))
    finally:
        await tail.close()


async def persisted(store: EventStore, batch: FeedBatch) -> None:
    """Persist a batch, again after each error."""
    while True:
        try:
            await store.persist(batch)
        except CdrsError:
            await asyncio.sleep(0.05)
        else:
            return
