"""Adapters under contract. A new one adds itself to the tables at the end; the suites stay as they are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from hazelcast_engine import connected, new_prefix, shared_cluster
from kafka_engine import KafkaTopics, kafka_url
from mongo_adapter import DRIVERS, MongoStoreAdapter

from shared.backends.embedded.log import open_log
from shared.backends.embedded.registry import open_registry
from shared.clock import SystemClock
from shared.ports import EventLog, EventStore, NodeRegistry
from shared.settings import LogSettings, RegistrySettings

PARTITIONS = 3

Opened = AbstractAsyncContextManager[tuple[EventLog, EventStore | None]]
"""A log and its store; None where the store is another adapter's."""


class LogAdapter(Protocol):
    """Opens one and the same log as often as asked: each time as another process would."""

    knows_streams: bool
    """Whether its appends refuse other spreads than a stream's."""

    def open(self) -> Opened: ...
    def open_other(self) -> Opened:
        """A log of another incarnation."""
        ...

    async def remove(self) -> None:
        """Leave nothing behind."""
        ...


class EmbeddedLogAdapter:
    knows_streams = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> Opened:
        return open_log(self._folder / "one", LogSettings(partitions=PARTITIONS), SystemClock())

    def open_other(self) -> Opened:
        return open_log(self._folder / "other", LogSettings(partitions=PARTITIONS), SystemClock())

    async def remove(self) -> None: ...


class KafkaLogAdapter:
    knows_streams = False

    def __init__(self, _: Path) -> None:
        self._topics = KafkaTopics(kafka_url())

    @asynccontextmanager
    async def _open(self, name: str) -> AsyncIterator[tuple[EventLog, EventStore | None]]:
        async with self._topics.open(name, partitions=PARTITIONS) as log:
            yield log, None

    def open(self) -> Opened:
        return self._open("one")

    def open_other(self) -> Opened:
        return self._open("other")

    async def remove(self) -> None:
        await self._topics.remove()


OpenRegistry = Callable[[], AbstractAsyncContextManager[NodeRegistry]]


def _embedded_registry(folder: Path) -> OpenRegistry:
    return lambda: open_registry(folder, RegistrySettings(timeout=5))


def _hazelcast_registry(folder: Path) -> OpenRegistry:
    url, prefix = shared_cluster(), new_prefix()
    return lambda: connected(url, RegistrySettings(timeout=5), prefix=prefix)


LOG_ADAPTERS: dict[str, Callable[[Path], LogAdapter]] = {"embedded": EmbeddedLogAdapter, "kafka": KafkaLogAdapter}
REGISTRY_ADAPTERS: dict[str, Callable[[Path], OpenRegistry]] = {
    "embedded": _embedded_registry,
    "hazelcast": _hazelcast_registry,
}
STORE_ADAPTERS: dict[str, Callable[[Path], LogAdapter]] = {
    "embedded": EmbeddedLogAdapter,
    **{f"mongo-{driver}": partial(MongoStoreAdapter, driver=driver) for driver in DRIVERS},
}
"""Stores, each with a log to fill it."""
