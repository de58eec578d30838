"""The log of the distributed profile: one topic per epoch."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from shared.backends.kafka.address import SETTING, KafkaAddress, parse_kafka_url
from shared.backends.kafka.admin import open_admin
from shared.backends.kafka.asking import Inquirer
from shared.backends.kafka.client import CLIENT_ERRORS, Connection, can_unpack, client_options, describe
from shared.backends.kafka.codec import Cause, encode
from shared.backends.kafka.hooks import KafkaHooks
from shared.backends.kafka.producing import Producers
from shared.backends.kafka.progress import Progress
from shared.backends.kafka.tail import KafkaTail
from shared.backends.kafka.topics import EpochTopic, open_topic
from shared.backends.kafka.writing import PartitionWriter
from shared.clock import Clock
from shared.errors import StartError, Unavailable
from shared.offers import Replicas
from shared.position import Epoch
from shared.records import Entry, ForeignRecord, NewEvent
from shared.settings import KafkaSettings, LogSettings


class KafkaLog:
    """`EventLog` in a Kafka topic with three copies. An append is durable when a quorum of them has it.

    Kafka knows nothing of identities or streams: who appends looks identities up, readers judge (`cdrs.judgement`), and
    spreads are checked where streams are known.
    """

    @property
    def decides_identity(self) -> bool:
        """See `EventLog`."""
        return False

    def __init__(
        self,
        topic: EpochTopic,
        connection: Connection,
        producers: Producers,
        *,
        clock: Clock,
        read_timeout: float,
        hooks: KafkaHooks,
    ) -> None:
        self._topic = topic
        self._connection = connection
        self._foreign_calls: list[Callable[[ForeignRecord], None]] = []
        self._told = hooks
        self._hooks = dataclasses.replace(hooks, foreign=self._on_foreign)
        self._inquirer = Inquirer(connection, read_timeout)
        self._progress = Progress(topic.partitions)
        self._writers = [
            PartitionWriter(number, producers, connection.settings, clock) for number in range(topic.partitions)
        ]
        self._tails: set[KafkaTail] = set()

    @property
    def epoch(self) -> Epoch:
        """See `EventLog.epoch`."""
        return self._topic.epoch

    @property
    def partitions(self) -> int:
        """See `EventLog.partitions`."""
        return self._topic.partitions

    @property
    def topic(self) -> str:
        """Name of the topic."""
        return self._topic.name

    async def append(self, partition: int, events: Sequence[NewEvent], *, base: int) -> Sequence[Entry]:
        """See `EventLog.append`. More than about 1 MiB goes in several batches: then "all or none" holds only where it
        does not raise."""
        writer = self._writers[partition]
        records = encode(events, epoch=self.epoch, base=base, floor_ms=self._progress.append_ms[partition])
        if records:
            offsets = await writer.append(records)
            if (last := offsets[-1]) is not None:
                self._progress.stored(partition, last + 1)
            return offsets
        return []

    def tail(self, positions: Mapping[int, int]) -> KafkaTail:
        """See `EventLog.tail`."""
        tail = KafkaTail(
            self._connection,
            self.epoch,
            positions,
            inquirer=self._inquirer,
            progress=self._progress,
            hooks=self._hooks,
            closed=self._tails.discard,
        )
        self._tails.add(tail)
        return tail

    async def ends(self) -> Mapping[int, int]:
        """See `EventLog.ends`."""
        return await self._inquirer.ends()

    async def starts(self) -> Mapping[int, int]:
        """See `EventLog.starts`."""
        return await self._inquirer.starts()

    async def firsts(self) -> Mapping[int, tuple[int, int]]:
        """See `DatedLog.firsts`."""
        return await self._inquirer.firsts()

    async def trim(self, below: Mapping[int, int]) -> None:
        """See `TrimmableLog.trim`."""
        try:
            async with open_admin(self._connection.address, self._connection.settings) as admin:
                await admin.trim(self.topic, below)
        except (*CLIENT_ERRORS, StartError) as error:
            raise Unavailable(f"records of {self.topic} cannot be deleted: {describe(error)}") from error

    def on_foreign(self, call: Callable[[ForeignRecord], None]) -> Callable[[], None]:
        """See `ForeignSource.on_foreign`."""
        self._foreign_calls.append(call)
        return lambda: self._foreign_calls.remove(call)

    def _on_foreign(self, partition: int, offset: int, cause: Cause, raw: bytes) -> None:
        self._told.foreign(partition, offset, cause, raw)
        for call in self._foreign_calls:
            call(ForeignRecord(partition, offset, cause.value, raw))

    def leaders(self) -> dict[int, int]:
        """Broker → how many partitions it leads, those that lead none included. As the client last saw the cluster,
        about 2 s ago at most; empty before `ends` or `starts` was first answered."""
        return self._inquirer.leaders()

    def replicas(self) -> dict[int, Replicas]:
        """See `ReplicatedLog.replicas`."""
        return self._inquirer.replicas()

    async def close(self) -> None:
        """Close what reads. Tails that nobody closed are closed."""
        await asyncio.gather(self._inquirer.close(), *[tail.close() for tail in tuple(self._tails)])


@asynccontextmanager
async def open_kafka_log(
    url: str,
    settings: LogSettings,
    clock: Clock,
    *,
    kafka: KafkaSettings | None = None,
    hooks: KafkaHooks | None = None,
) -> AsyncGenerator[KafkaLog]:
    """Open the log at these brokers (`parse_kafka_url`), or make it; a log that exists keeps its partitions.

    Waits for as long as the cluster cannot be used, telling ``hooks.waiting`` what is missing; cancel it to end that.
    Raises `StartError` where waiting cannot help: URL, credentials, or a topic that is weaker than it must be.
    """
    hooks = hooks or KafkaHooks()
    address, kafka = parse_kafka_url(url, kafka or KafkaSettings())
    _check(address, kafka)
    topic = await open_topic(address, settings, kafka, hooks.waiting)
    connection = Connection(address, kafka, topic.name, topic.partitions)
    producers = Producers(connection, lambda reason: hooks.replaced("producer", reason))
    # Not a TaskGroup: that would wrap whatever the user of this context raises.
    running = asyncio.create_task(producers.run(), name="kafka producers")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_end, running)
        log = KafkaLog(topic, connection, producers, clock=clock, read_timeout=settings.read_timeout, hooks=hooks)
        stack.push_async_callback(log.close)
        yield log


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _check(address: KafkaAddress, settings: KafkaSettings) -> None:
    if not can_unpack():
        # Others may write packed batches, whatever this process does itself; one would stop its partition.
        raise StartError("the Python package cramjam is missing: without it packed batches cannot be read")
    try:
        client_options(address, settings)
    except OSError as error:
        raise StartError(
            f"setting {SETTING}: {address.cafile or 'the certificates'} cannot be used: {error}"
        ) from error
