"""Running nodes over Kafka and MongoDB, in a topic and a database of the tests' own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from aiokafka import AIOKafkaProducer
from engine_set import mongo_url
from hazelcast_engine import shared_cluster
from kafka_engine import KafkaTopics, kafka_url
from mongo_adapter import database_url, empty, plain_client
from node_world import running
from slow_link import SlowLink
from tcp_proxy import TcpProxy

from cdrs.node import Node
from shared.backends.kafka.log import KafkaLog
from shared.backends.mongo.opening import open_mongo_store
from shared.backends.mongo.store import MongoStore
from shared.clock import SystemClock
from shared.records import NewEvent, PageQuery, Record, Settlement
from shared.settings import MongoSettings, NodeSettings, PersistSettings, Settings
from shared.telemetry import Telemetry

TIMEOUT = 30.0
PARTITIONS = 2


@dataclass
class EngineNode:
    """A node and what it stands on, as one process has it."""

    node: Node
    log: KafkaLog
    store: MongoStore
    telemetry: Telemetry

    async def append(self, partition: int, events: list[NewEvent]) -> list[Settlement]:
        return list(await self.node.append(self.log.epoch, partition, events, timeout=TIMEOUT))

    async def visible(self, partition: int, *streams: str) -> list[Record]:
        """All of a partition's history, or of these streams, page by page."""
        end = (await self.node.ends())[partition]
        at, found = 0, list[Record]()
        while at < end:
            query = PageQuery(partition, at, end, 500, 2**22, list(streams) or None)
            page = await self.node.page(query)
            found += page.records
            at = page.next
        return found


@dataclass
class EngineWorld:
    """Topics and a database that are gone after the test."""

    topics: KafkaTopics

    def _store(self, log: KafkaLog, url: str, mongo: dict[str, Any]) -> AbstractAsyncContextManager[MongoStore]:
        return open_mongo_store(
            url or database_url(), MongoSettings(**mongo), SystemClock(), epoch=log.epoch, partitions=PARTITIONS
        )

    @asynccontextmanager
    async def node(
        self,
        *,
        preferred: bool = True,
        persist: PersistSettings | None = None,
        mongo: dict[str, Any] | None = None,
        topic: str = "one",
        store_url: str = "",
        **node: Any,
    ) -> AsyncGenerator[EngineNode]:
        async with AsyncExitStack() as stack:
            log = await stack.enter_async_context(self.topics.open(topic, partitions=PARTITIONS))
            store = await stack.enter_async_context(self._store(log, store_url, mongo or {}))
            settings = Settings(node=NodeSettings(**node), persist=persist or PersistSettings(linger=0.01))
            telemetry = Telemetry(version="test")
            one = Node(
                log,
                store,
                settings,
                SystemClock(),
                node_id="n",
                incarnation="i",
                telemetry=telemetry,
                preferred=lambda _: preferred,
            )
            await stack.enter_async_context(running(one.run))
            assert await one.ready(TIMEOUT)
            yield EngineNode(one, log, store, telemetry)


@asynccontextmanager
async def engine_world() -> AsyncIterator[EngineWorld]:
    empty()
    topics = KafkaTopics(kafka_url())
    try:
        yield EngineWorld(topics)
    finally:
        await topics.remove()


@asynccontextmanager
async def stranger() -> AsyncIterator[AIOKafkaProducer]:
    """A producer that is not ours."""
    hosts = kafka_url().removeprefix("kafka://").split(",")
    producer = AIOKafkaProducer(bootstrap_servers=hosts, acks="all", max_request_size=8_000_000)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


@contextmanager
def proxied_mongo() -> Iterator[TcpProxy]:
    """A proxy before the primary. What connects by `proxied_url` knows no other way to it."""
    with TcpProxy(primary_port()) as proxy:
        yield proxy


def primary_port() -> int:
    """Where the primary is, on loopback."""
    host, port = plain_client().primary or ("", 0)
    if not host:
        plain_client().admin.command("ping")
        host, port = plain_client().primary or ("", 0)
    assert host == "127.0.0.1"
    return port


def proxied_url(proxy: TcpProxy | SlowLink, url: str) -> str:
    """A store's URL, through the proxy."""
    return f"mongodb://{proxy.host}{urlsplit(url).path}?directConnection=true"


@asynccontextmanager
async def engine_variables() -> AsyncIterator[dict[str, str]]:
    """Variables that point cdrs at the set of engines, at a topic and a database of the test's own."""
    topics, database = KafkaTopics(kafka_url()), f"cdrs_test_{secrets.token_hex(4)}"
    store = urlunsplit(urlsplit(mongo_url())._replace(path=f"/{database}"))
    try:
        yield {
            "CDRS_LOG__URL": topics.url,
            "CDRS_REGISTRY__URL": shared_cluster(),
            "CDRS_STORE__URL": store,
            "CDRS_KAFKA__TOPIC": f"{topics.prefix}.one",
            "CDRS_LOG__PARTITIONS": str(PARTITIONS),
        }
    finally:
        await topics.remove()
        plain_client().drop_database(database)
