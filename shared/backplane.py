"""Settings → opened ports. The only module that knows which adapters a profile consists of.

Adapters are imported where they are opened: the embedded profile needs no client of a server, nor the other way round,
and clients are the larger part of what a small process would hold in memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from shared.clock import Clock
from shared.errors import StartError, Unavailable
from shared.ports import EventLog, EventStore, NodeRegistry
from shared.settings import Settings

Waiting = Callable[[str, str], None]
"""Told that a part (``log`` or ``store``) cannot be reached yet, and what was tried; an empty text: it was reached."""

if TYPE_CHECKING:
    from shared.recovered import Recovery

REGISTRY_PATIENCE = 10.0
"""Seconds for a registry to answer before it is asked no more."""

T = TypeVar("T")
U = TypeVar("U")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ports:
    """What a node needs from the world."""

    log: EventLog
    store: EventStore
    registry: NodeRegistry


def _ignore(_part: str, _detail: str) -> None:
    pass


@asynccontextmanager
async def open_ports(
    settings: Settings, clock: Clock, *, registry: NodeRegistry | None = None, waiting: Waiting = _ignore
) -> AsyncGenerator[Ports]:
    """Open log, store and registry (unless given); close them in reverse order.

    Servers are waited for, however long it takes; cancel to end that. Raises `StartError` where waiting cannot help.
    """
    async with AsyncExitStack() as stack:
        if registry is None:
            registry = await stack.enter_async_context(open_registry(settings))
        opening = _open_servers if settings.is_distributed else _open_files
        log, store = await opening(stack, settings, clock, waiting)
        yield Ports(log, store, registry)


@asynccontextmanager
async def open_registry(settings: Settings) -> AsyncGenerator[NodeRegistry]:
    """The registry alone: a gateway that reaches its nodes over HTTP never touches the log."""
    if settings.is_distributed:
        from shared.backends.hazelcast.registry import open_hazelcast_registry  # noqa: PLC0415

        async with open_hazelcast_registry(settings.registry.url, settings.registry) as cluster:
            yield cluster
        return
    from shared.backends.embedded.database import make_folder  # noqa: PLC0415
    from shared.backends.embedded.registry import open_registry as open_embedded_registry  # noqa: PLC0415

    make_folder(settings.data)
    async with open_embedded_registry(settings.data, settings.registry) as file:
        yield file


async def check_urls(settings: Settings) -> None:
    """Raise `StartError` that names the setting where a server's URL, or the topic, cannot be meant, before anything is
    opened."""
    if not settings.is_distributed:
        return
    from shared.backends.hazelcast.cluster import parse_cluster  # noqa: PLC0415
    from shared.backends.kafka.address import parse_kafka_url  # noqa: PLC0415
    from shared.backends.kafka.topics import check_settings  # noqa: PLC0415
    from shared.backends.mongo.opening import locate  # noqa: PLC0415

    parse_kafka_url(settings.log.url, settings.kafka)
    check_settings(settings.kafka)
    parse_cluster(settings.registry.url)
    await asyncio.to_thread(locate, settings.store.url)  # may ask the DNS


async def shard_commands(settings: Settings, shards: Sequence[str]) -> Sequence[str]:
    """Lines for ``mongosh`` on a router that spread the store over a sharded cluster, by the log's epoch as it is now.
    Raises `StartError` where the store is a file, or the log cannot be asked."""
    if not settings.is_distributed:
        raise StartError("setting store.url is not set: the embedded store is one file, and there is nothing to shard")
    from shared.backends.kafka.address import parse_kafka_url  # noqa: PLC0415
    from shared.backends.kafka.topics import find_topic  # noqa: PLC0415
    from shared.backends.mongo.opening import locate  # noqa: PLC0415
    from shared.backends.mongo.sharding import as_shell, shard_plan  # noqa: PLC0415

    location = await asyncio.to_thread(locate, settings.store.url)
    topic = await find_topic(*parse_kafka_url(settings.log.url, settings.kafka))
    return list(as_shell(shard_plan(location.database, topic.epoch, topic.partitions, shards)))


async def check_log(settings: Settings) -> Recovery:
    """Read the whole log and say what is there. Raises `StartError`."""
    from shared.backends.embedded import recovery  # noqa: PLC0415

    if settings.is_distributed:
        raise StartError("log.url is set: nodes look after a log in Kafka themselves, see /readyz?verbose")
    return await asyncio.to_thread(recovery.check_log, settings.data)


async def recover_log(settings: Settings, clock: Clock) -> Recovery:
    """Put the log into a new epoch, with all that is left of it. Raises `StartError`, or `Unavailable` and
    `OutcomeUnknown`; then it is to be repeated."""
    if settings.is_distributed:
        return await _recover_servers(settings, clock)
    from shared.backends.embedded import recovery  # noqa: PLC0415

    return await asyncio.to_thread(recovery.recover_log, settings.data, settings.log.partitions)


async def _recover_servers(settings: Settings, clock: Clock) -> Recovery:
    """A new topic that goes on with what the store has."""
    from shared.backends.kafka.address import parse_kafka_url  # noqa: PLC0415
    from shared.backends.kafka.topics import latest_topic, new_topic  # noqa: PLC0415
    from shared.backends.mongo.opening import open_mongo_epochs  # noqa: PLC0415
    from shared.recovered import Findings, Recovery  # noqa: PLC0415

    await _refuse_if_served(settings)
    address, kafka = parse_kafka_url(settings.log.url, settings.kafka)
    topic = await latest_topic(address, kafka)
    log = settings.log if topic is None else settings.log.model_copy(update={"partitions": topic.partitions})
    async with open_mongo_epochs(settings.store.url, settings.mongo, logger.warning) as epochs:
        stored = await epochs.succession()
        if topic is not None and (left := await epochs.finish(topic.epoch, stored)) is not None:
            found = Findings(left.epoch, topic.partitions, ends=dict(left.stops), events=sum(left.stops.values()))
            return Recovery(f"Kafka at {address}", found, [], topic.epoch)
        begun = topic.epoch if topic is not None and stored.unknown_to(topic.epoch) else None
        """An epoch that took nothing over yet, as the topic was lost and a node made one, or this was broken off."""
        former = stored.unknown_to(begun)[-1] if begun is not None else topic.epoch if topic is not None else None
        if former is None:
            former = max(stored.checkpoints, default=None)
        if former is None:
            raise StartError("neither Kafka nor MongoDB has a log: the first node that starts makes one")
        if (topic is None or begun is not None) and not await epochs.is_at_home(former, log.partitions):
            raise StartError(
                f"the store's history does not stand where {log.partitions} partitions put it: set log.partitions to "
                "what it was"
                + ("" if topic is None else f", and delete the topic {topic.name}, which a node made anew")
            )
        stops = {partition: stored.checkpoints.get(former, {}).get(partition, 0) for partition in range(log.partitions)}
        ends = dict(stops)
        if topic is not None:
            bases = stored.bases(former) if begun is None else {}
            ends = await _ends_of_topic(settings, clock, bases)
            unstored = {p: end for p, end in ends.items() if end > (stops[p] if begun is None else 0)}
            if unstored:
                raise StartError(
                    f"topic {topic.name} has what the store lacks, of partitions {', '.join(map(str, unstored))}: let "
                    "the nodes run and store it; or delete the topic, if it is not the one that was here before"
                )
        if begun is None:
            begun = (await new_topic(address, log, kafka, former.ordinal + 1)).epoch
        events = await epochs.take_over(clock, former, begun, stops, stored)
    beyond = [(partition, ends[partition], stop) for partition, stop in stops.items() if ends[partition] < stop]
    found = Findings(former, log.partitions, events=events, ends=stops)
    return Recovery(f"Kafka at {address}", found, beyond, begun)


async def _refuse_if_served(settings: Settings) -> None:
    async with open_registry(settings) as registry:
        deadline = asyncio.get_running_loop().time() + REGISTRY_PATIENCE
        while True:
            try:
                members = {member.key: member for member in await registry.members()}
                beats = await registry.beats()
                break
            except Unavailable:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(0.1)
        live = [members[key].id for key in beats if key in members and members[key].role == "node"]
    if live:
        raise StartError(f"nodes serve the log: {', '.join(sorted(live))}; stop every node first")


async def _ends_of_topic(settings: Settings, clock: Clock, bases: Mapping[int, int]) -> dict[int, int]:
    from shared.backends.kafka.log import open_kafka_log  # noqa: PLC0415

    async with open_kafka_log(settings.log.url, settings.log, clock, kafka=settings.kafka) as log:
        return {partition: end + bases.get(partition, 0) for partition, end in (await log.ends()).items()}


async def _open_files(
    stack: AsyncExitStack, settings: Settings, clock: Clock, _waiting: Waiting
) -> tuple[EventLog, EventStore]:
    from shared.backends.embedded.log import open_log  # noqa: PLC0415
    from shared.backends.embedded.marks import marked  # noqa: PLC0415

    log, store = await stack.enter_async_context(open_log(settings.data, settings.log, clock))
    await stack.enter_async_context(marked(settings.data, log))
    return log, store


async def _open_servers(
    stack: AsyncExitStack, settings: Settings, clock: Clock, waiting: Waiting
) -> tuple[EventLog, EventStore]:
    from shared.backends.kafka.hooks import KafkaHooks  # noqa: PLC0415
    from shared.backends.kafka.log import KafkaLog, open_kafka_log  # noqa: PLC0415
    from shared.backends.kafka.shifted import ShiftedLog  # noqa: PLC0415
    from shared.backends.mongo.opening import await_mongo, open_mongo_epochs, open_mongo_store  # noqa: PLC0415

    def told(part: str) -> Callable[[str], None]:
        last = ""

        def tell(detail: str) -> None:
            nonlocal last
            if detail != last:
                last = detail
                logger.warning("waiting for the %s: %s", part, detail)
            waiting(part, detail)

        return tell

    hooks = KafkaHooks(
        # The adapter says it in its own log.
        waiting=lambda detail: waiting("log", detail),
        replaced=lambda what, why: logger.warning("Kafka %s replaced: %s", what, why),
    )

    async def open_log() -> KafkaLog:
        opened = open_kafka_log(settings.log.url, settings.log, clock, kafka=settings.kafka, hooks=hooks)
        log = await stack.enter_async_context(opened)
        waiting("log", "")
        return log

    async def await_store() -> None:
        await await_mongo(settings.store.url, settings.mongo, told("store"))
        waiting("store", "")

    waiting("log", "not reached yet")
    waiting("store", "not reached yet")
    # Opening the store takes the log's epoch; what is wrong with either is known at once, whichever comes first.
    log, _ = await _all(open_log(), await_store())
    store = await stack.enter_async_context(
        open_mongo_store(
            settings.store.url,
            settings.mongo,
            clock,
            epoch=log.epoch,
            partitions=log.partitions,
            waiting=told("store"),
        )
    )
    waiting("store", "")
    async with open_mongo_epochs(settings.store.url, settings.mongo, told("store")) as epochs:
        stored = await epochs.succession()
    if unknown := stored.unknown_to(log.epoch):
        raise StartError(
            f"the store has history of epoch {unknown[-1]}, which the log (epoch {log.epoch}) does not go on with: its "
            "topic was deleted, or made anew. Stop every node and run 'cdrs log recover': what the store has is served "
            "on in a new epoch; or give another database in store.url"
        )
    if former := stored.former.get(log.epoch):
        return ShiftedLog(log, stored.bases(log.epoch), former), store
    return log, store


async def _all(one: Coroutine[Any, Any, T], other: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """What both give; the first error ends the other one."""
    tasks = (asyncio.create_task(one), asyncio.create_task(other))
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
