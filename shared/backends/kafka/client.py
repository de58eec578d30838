"""A thin typed layer over aiokafka: one topic, partitions as numbers, every call with a deadline. Nothing is retried
here beyond what aiokafka does by itself, and nothing is interpreted."""

# aiokafka is partly untyped; this module, `admin` and `batches` are where that ends
# mypy: disable-error-code="import-untyped"
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar, cast

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition, codec
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    KafkaError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.fetch import FetchRequest

from shared.backends.kafka.address import KafkaAddress
from shared.backends.kafka.codec import Outgoing, RawRecord
from shared.backends.kafka.connecting import hasten
from shared.cancelling import is_cancelled
from shared.offers import Replicas
from shared.settings import KafkaSettings

BATCH_BYTES: Final = 1024 * 1024
"""What records are joined up to; a larger one has a batch of its own, below the topic's ``max.message.bytes``."""
FETCH_BYTES: Final = 512 * 1024
"""Read ahead of one partition, about; one batch is never cut."""
FETCH_WAIT_MS: Final = 200
"""How long a broker holds a question that it has no records for. It answers at once when it has one; what must wait
is only a position that was changed meanwhile."""
METADATA_MAX_AGE_MS: Final = 2000
RETRY_BACKOFF_MS: Final = 50

CLIENT_ERRORS: Final = (KafkaError, OSError, asyncio.TimeoutError)
"""What a call may end with."""
PARSE_ERRORS: Final = (ValueError, TypeError, IndexError)
"""What aiokafka ends with where a record is not as it expects."""
OUT_OF_RANGE: Final = OffsetOutOfRangeError
_REFUSALS: Final = (
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    ClusterAuthorizationFailedError,
)

P = ParamSpec("P")
T = TypeVar("T")

_logger = logging.getLogger(__name__)


def is_refusal(error: BaseException) -> bool:
    """Whether the brokers will never take this batch, and so cannot have taken it."""
    return isinstance(error, _REFUSALS)


def describe(error: BaseException) -> str:
    """An error in a few words."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def client_options(address: KafkaAddress, settings: KafkaSettings) -> dict[str, Any]:
    """What all of aiokafka's clients are made with."""
    options: dict[str, Any] = {
        "bootstrap_servers": list(address.hosts),
        "client_id": "cdrs",
        "request_timeout_ms": int(settings.request_timeout * 1000),
        "retry_backoff_ms": RETRY_BACKOFF_MS,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        "security_protocol": address.protocol,
    }
    if address.tls:
        options["ssl_context"] = ssl.create_default_context(cafile=address.cafile or None)
    if address.mechanism:
        options["sasl_mechanism"] = address.mechanism
        options["sasl_plain_username"] = address.username
        options["sasl_plain_password"] = address.password
    return options


async def within(seconds: float, work: Awaitable[object]) -> bool:
    """Await something whose failure does not matter; whether it ended well in time."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except CLIENT_ERRORS as error:
        _logger.debug("ignored: %s", describe(error))
        return False
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        _logger.debug("ignored: the end of one of the client's own tasks")
        return False
    return True


def _no_strays(call: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let a cancellation that nobody asked for (`shared.cancelling`) be one of `CLIENT_ERRORS`."""

    @wraps(call)
    async def guarded(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return await call(*arguments, **options)
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            raise ConnectionError("Kafka's client ended a task of its own") from error

    return guarded


@dataclass(frozen=True, slots=True)
class Connection:
    """How to make clients for one topic."""

    address: KafkaAddress
    settings: KafkaSettings
    topic: str
    partitions: int

    @property
    def start_timeout(self) -> float:
        """Seconds to start a client: two brokers may be tried in vain."""
        return self.settings.request_timeout * 2 + 1

    @property
    def stop_timeout(self) -> float:
        """Seconds to stop one: a request under way may have to run out, and the question for the new leader."""
        return self.settings.request_timeout * 2 + 1

    def producer(self) -> ProducerClient:
        """A new producer, not started."""
        return ProducerClient(self)

    def consumer(self) -> ConsumerClient:
        """A new consumer, not started."""
        return ConsumerClient(self)


class ProducerClient:
    """An idempotent producer with ``acks=all``."""

    def __init__(self, connection: Connection) -> None:
        settings = connection.settings
        self._connection = connection
        self._topic = connection.topic
        self._producer = AIOKafkaProducer(
            acks="all",
            enable_idempotence=True,
            max_batch_size=BATCH_BYTES,
            linger_ms=0,
            compression_type=None if settings.compression == "none" else settings.compression,
            **client_options(connection.address, settings),
        )
        hasten(self._producer.client, settings)

    @_no_strays
    async def start(self) -> None:
        """Connect and get a producer id. Raises `CLIENT_ERRORS`; `stop` afterwards in any case."""
        async with asyncio.timeout(self._connection.start_timeout):
            await self._producer.start()
            await self._producer.partitions_for(self._topic)

    @_no_strays
    async def send(self, partition: int, records: Sequence[Outgoing], timestamp_ms: int) -> asyncio.Future[Any]:
        """Queue one batch; the future ends when the brokers have answered, with the first offset (-1: not told).

        Unless this returns, nothing was or will be sent. The caller has no other batch of this partition under way.
        """
        batch = self._producer.create_batch()
        append = batch.append
        for record in records:
            if append(timestamp=timestamp_ms, key=record.key, value=record.value, headers=record.headers) is None:
                raise ValueError("the batch is too large")
        batch.close()
        future: asyncio.Future[Any] = await self._producer.send_batch(batch, self._topic, partition=partition)
        future.add_done_callback(_look_at)
        return future

    async def stop(self) -> None:
        """Send nothing more and close all connections. Bounded; never raises `CLIENT_ERRORS`.

        The futures of batches that were under way may stay without an end.
        """
        # Not aiokafka's own stop(): that waits until everything under way is settled, for ever if need be. And its way
        # of failing what is under way stumbles over batches that are about to be sent again.
        self._producer._closed = True
        await within(self._connection.stop_timeout, self._producer._sender.close())
        await within(1.0, self._producer.client.close())


class _Arrived(OrderedDict[TopicPartition, Any]):
    """Where a consumer's fetcher keeps what has arrived. Records come out of it as the parser made them: aiokafka would
    copy each into a `ConsumerRecord`, which is a quarter of what reading costs and of which we look at nothing else."""

    def __setitem__(self, partition: TopicPartition, result: Any) -> None:
        unread = getattr(result, "_partition_records", None)  # there is none where the broker reported an error
        if unread is not None:
            unread._consumer_record = _as_parsed
        super().__setitem__(partition, result)


def _as_parsed(_partition: TopicPartition, record: RawRecord) -> RawRecord:
    return record


class ConsumerClient:
    """A consumer without a group, whose partitions and positions are set by hand."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._partitions = [TopicPartition(connection.topic, number) for number in range(connection.partitions)]
        self._consumer = AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_uncommitted",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=FETCH_BYTES * 16,
            max_partition_fetch_bytes=FETCH_BYTES,
            **client_options(connection.address, connection.settings),
        )
        hasten(self._consumer._client, connection.settings)

    @_no_strays
    async def start(self) -> None:
        """Connect. Raises `CLIENT_ERRORS`; `stop` afterwards in any case."""
        async with asyncio.timeout(self._connection.start_timeout):
            await self._consumer.start()
        fetcher = self._consumer._fetcher
        assert fetcher is not None
        assert not fetcher._records  # nothing is assigned yet
        fetcher._records = _Arrived()

    async def stop(self) -> None:
        """Close all connections. Bounded; never raises `CLIENT_ERRORS`."""
        if not await within(self._connection.stop_timeout, self._consumer.stop()):
            await within(1.0, self._consumer._client.close())

    @property
    def has_ended(self) -> bool:
        """Whether its background task has died."""
        fetcher = self._consumer._fetcher
        return fetcher is None or bool(fetcher.error_future.done())

    def assign(self, positions: Mapping[int, int]) -> None:
        """Read these partitions from these offsets on, and no others."""
        self._consumer.assign([self._partitions[partition] for partition in positions])
        for partition, offset in positions.items():
            self._consumer.seek(self._partitions[partition], offset)

    def seek(self, partition: int, offset: int) -> None:
        """Go on elsewhere in an assigned partition."""
        self._consumer.seek(self._partitions[partition], offset)

    def pause(self, partition: int) -> None:
        """Ask for nothing of an assigned partition."""
        self._consumer.pause(self._partitions[partition])

    def resume(self, partition: int) -> None:
        """The inverse of `pause`."""
        self._consumer.resume(self._partitions[partition])

    @_no_strays
    async def fetched(
        self, partitions: Iterable[int], *, max_records: int, timeout: float
    ) -> Mapping[int, Sequence[RawRecord]]:
        """Records that have arrived, of these partitions (none named: of all), at most so many; waits for the first.

        Raises `OUT_OF_RANGE` (with a dictionary of what was asked for), `PARSE_ERRORS` or `CLIENT_ERRORS`.
        """
        wanted = [self._partitions[partition] for partition in partitions]
        found = await self._consumer.getmany(*wanted, timeout_ms=int(timeout * 1000), max_records=max_records)
        return {each.partition: cast("Sequence[RawRecord]", records) for each, records in found.items()}

    @_no_strays
    async def position(self, partition: int) -> int:
        """Offset that will be asked for next in an assigned partition. Raises `CLIENT_ERRORS`: aiokafka itself waits
        without end for a position that a partition has lost."""
        async with asyncio.timeout(self._connection.stop_timeout):
            return int(await self._consumer.position(self._partitions[partition]))

    @_no_strays
    async def raw(self, partition: int, offset: int) -> bytes:
        """Bytes of whole batches, the first of which holds this offset or the next one there is; empty at the end."""
        client = self._consumer._client
        asked = [(self._connection.topic, [(partition, offset, FETCH_BYTES)])]
        request = FetchRequest(0, 0, FETCH_BYTES, 0, asked, rack_id="")
        leader = client.cluster.leader_for_partition(self._partitions[partition])
        async with asyncio.timeout(self._connection.stop_timeout):
            response: Any = await client.send(leader, request)
        ((_, ((_, error, *_, data),)),) = response.topics
        return b"" if error else bytes(data or b"")

    @_no_strays
    async def ends(self, timeout: float) -> dict[int, int]:
        """Per partition the next offset to be written. Raises `CLIENT_ERRORS`."""
        async with asyncio.timeout(timeout):
            return _by_number(await self._consumer.end_offsets(self._partitions))

    @_no_strays
    async def starts(self, timeout: float) -> dict[int, int]:
        """Per partition the first offset that is kept. Raises `CLIENT_ERRORS`."""
        async with asyncio.timeout(timeout):
            return _by_number(await self._consumer.beginning_offsets(self._partitions))

    @_no_strays
    async def firsts(self, timeout: float) -> dict[int, tuple[int, int]]:
        """Per partition that has any, offset and stamp of the first record kept. Raises `CLIENT_ERRORS`."""
        async with asyncio.timeout(timeout):
            found = await self._consumer.offsets_for_times(dict.fromkeys(self._partitions, 0))
        return {int(p.partition): (int(first.offset), int(first.timestamp)) for p, first in found.items() if first}

    def leaders(self) -> dict[int, int]:
        """Broker → how many partitions it leads, as of the last look at the cluster (2 s old at most, as a rule)."""
        cluster = self._consumer._client.cluster
        counts: Counter[int] = Counter({int(broker.nodeId): 0 for broker in cluster.brokers()})
        for partition in self._partitions:
            leader = cluster.leader_for_partition(partition)
            if leader is not None and leader >= 0:
                counts[leader] += 1
        return dict(counts)

    def replicas(self) -> dict[int, Replicas]:
        """Per partition who keeps copies, as of the same look."""
        known = self._consumer._client.cluster._partitions.get(self._connection.topic, {})
        return {int(partition): _replicas(each) for partition, each in known.items()}


def _replicas(known: Any) -> Replicas:
    return Replicas(frozenset(map(int, known.replicas)), frozenset(map(int, known.isr)))


def can_unpack() -> bool:
    """Whether batches packed by any codec can be written and read here."""
    return bool(codec.has_lz4() and codec.has_snappy() and codec.has_zstd())


def _by_number(offsets: Mapping[Any, int]) -> dict[int, int]:
    return {int(each.partition): int(offset) for each, offset in offsets.items()}


def _look_at(future: asyncio.Future[Any]) -> None:
    """Nobody may be waiting any more; asyncio complains of exceptions that nobody has seen."""
    if not future.cancelled():
        future.exception()
