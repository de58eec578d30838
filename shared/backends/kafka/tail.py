"""Following partitions with a consumer of one's own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from shared.backends.kafka.asking import Inquirer, start_consumer
from shared.backends.kafka.batches import Unreadable, read_carefully
from shared.backends.kafka.client import CLIENT_ERRORS, OUT_OF_RANGE, PARSE_ERRORS, Connection, ConsumerClient, describe
from shared.backends.kafka.codec import Cause, Foreign, PartitionDecoder, RawRecord
from shared.backends.kafka.hooks import KafkaHooks
from shared.backends.kafka.progress import Progress
from shared.errors import Gone, Unavailable
from shared.position import Epoch
from shared.records import LogBatch, Record

READ_BACK: Final = 1.0
"""Seconds that a poll waits, beyond its timeout, for what this process knows to be in the log."""
WATCH_INTERVAL: Final = 1.0
"""Seconds between two looks at whether the reader still gets what the log has."""
AHEAD_INTERVAL: Final = 0.05
"""Seconds between two looks at whether the log has reached a position beyond its end."""

RECONNECT: Final = 0.5
"""Seconds between two attempts at reaching brokers of whom none has answered for long."""

COURTESY: Final = 0.1
"""Seconds that one partition's records wait for those of others to arrive."""

_logger = logging.getLogger(__name__)


class KafkaTail:
    """`LogTail` over a consumer, which is made by the first poll and replaced when it is stuck.

    The positions are kept here; the consumer's are only ever set to them. Records that are not ours are left out of
    the batches but covered by them, and reported. `poll` raises `Gone` while a position lies below the log's start,
    and `Unavailable` where no consumer can be made.
    """

    def __init__(
        self,
        connection: Connection,
        epoch: Epoch,
        positions: Mapping[int, int],
        *,
        inquirer: Inquirer,
        progress: Progress,
        hooks: KafkaHooks,
        closed: Callable[[KafkaTail], None],
    ) -> None:
        self._connection = connection
        self._epoch = epoch
        self._inquirer = inquirer
        self._progress = progress
        self._hooks = hooks
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._client: ConsumerClient | None = None
        self._positions: dict[int, int] = {}
        self._decoders: dict[int, PartitionDecoder] = {}
        self._moved: dict[int, float] = {}
        """When each partition last got on, or had nothing to read."""
        self._ahead: set[int] = set()
        """Partitions whose position is beyond the log's end."""
        self._is_assigned = False
        self._last: int | None = None
        """Partition that the last poll did not read to the end of what had arrived."""
        self._was_patient = False
        """Whether other partitions than the last were waited for in vain."""
        self._watched_at = self._answered_at = self._loop.time()
        self._is_lost = False
        """No broker has answered for so long that the consumer was given up."""
        for partition, offset in positions.items():
            self.seek(partition, offset)

    async def poll(self, *, max_records: int, timeout: float) -> Sequence[LogBatch]:
        """See `LogTail.poll`."""
        deadline = self._loop.time() + timeout
        while True:
            try:
                client = await self._connect()
            except Unavailable:
                if not self._is_lost:
                    raise
                await asyncio.sleep(RECONNECT)
                return []
            now = self._loop.time()
            batches = await self._read(client, max_records, min(max(deadline - now, 0), self._patience()))
            if batches:
                return [*batches, *await self._watch_the_others(client)]
            batches = await self._watch()
            if batches:
                return batches
            now = self._loop.time()
            if now >= deadline and not (self._owes() and now < deadline + READ_BACK):
                return []

    def seek(self, partition: int, offset: int) -> None:
        """See `LogTail.seek`."""
        if not 0 <= partition < self._connection.partitions or offset < 0:
            raise ValueError(f"no such position: {partition}/{offset}")
        is_new = partition not in self._positions
        self._positions[partition] = offset
        self._moved[partition] = self._loop.time()
        self._decoders[partition] = PartitionDecoder(partition, self._epoch)
        if is_new:
            self._is_assigned = False
        elif self._client is not None and self._is_assigned:
            self._client.seek(partition, offset)
            self._no_longer_ahead(self._client, partition)

    def forget(self, partition: int) -> None:
        """See `LogTail.forget`."""
        if self._positions.pop(partition, None) is not None:
            self._ahead.discard(partition)
            self._is_assigned = False

    async def close(self) -> None:
        """See `LogTail.close`."""
        self._positions.clear()
        self._closed(self)
        await self._disconnect()

    # --- the consumer

    async def _connect(self) -> ConsumerClient:
        if self._client is not None and self._client.has_ended:
            await self._replace("its background task has died")
        if self._client is None:
            self._is_assigned = False
            self._client = await start_consumer(self._connection)
            self._answered_at, self._is_lost = self._loop.time(), False
        if not self._is_assigned:
            self._client.assign(self._positions)
            self._ahead.clear()
            self._is_assigned = True
        return self._client

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.stop()

    async def _replace(self, reason: str) -> None:
        _logger.warning("the reader of %s is replaced: %s", self._connection.topic, reason)
        self._hooks.replaced("consumer", reason)
        await self._disconnect()

    # --- reading

    def _patience(self) -> float:
        """Longest single wait for records."""
        if self._ahead:
            return AHEAD_INTERVAL
        return WATCH_INTERVAL

    def _owes(self) -> bool:
        """Whether the log is known to hold more than was read."""
        return any(self._progress.ends[partition] > offset for partition, offset in self._positions.items())

    async def _read(self, client: ConsumerClient, max_records: int, timeout: float) -> list[LogBatch]:
        if not self._positions:
            await asyncio.sleep(timeout)
            return []
        wait = max(timeout, AHEAD_INTERVAL) if self._owes() else timeout
        try:
            return await self._fetch(client, max_records, wait)
        except OUT_OF_RANGE as error:
            _logger.debug("%s", describe(error))
            await self._out_of_range(client)
        except PARSE_ERRORS as error:
            _logger.debug("something cannot be read: %s", describe(error))
            return await self._read_one_by_one(client, max_records)
        except CLIENT_ERRORS as error:
            await self._replace(describe(error))
            raise Unavailable(f"Kafka cannot be read: {describe(error)}", retry_after=1.0) from error
        return []

    def _courtesy(self, others: Iterable[int]) -> float:
        """How long to wait for these although another one has records ready: once, if they are known to have some."""
        ends, positions = self._progress.ends, self._positions
        owing = not self._was_patient and any(ends[partition] > positions[partition] for partition in others)
        return COURTESY if owing else 0

    async def _fetch(self, client: ConsumerClient, max_records: int, timeout: float) -> list[LogBatch]:
        found: dict[int, Sequence[RawRecord]] = {}
        if self._last is not None:
            # The client would go on with this one for as long as it has any of it; the others come first.
            others = [partition for partition in self._positions if partition != self._last]
            if others:
                found.update(await client.fetched(others, max_records=max_records, timeout=self._courtesy(others)))
                self._was_patient = not found
            self._last = None
        left = max_records - sum(map(len, found.values()))
        if left > 0:
            more: Mapping[int, Sequence[RawRecord]] = {}
            try:
                more = await client.fetched((), max_records=left, timeout=0 if found else timeout)
            except (*CLIENT_ERRORS, *PARSE_ERRORS):
                if not found:  # else the client is past what it gave, which must not be lost; it will say it again
                    raise
            for partition, raws in more.items():
                found[partition] = [*found[partition], *raws] if partition in found else raws
        if sum(map(len, found.values())) >= max_records:
            self._last = next(reversed(found))
        return [batch for partition, raws in found.items() if (batch := self._take(partition, raws)) is not None]

    def _take(self, partition: int, raws: Sequence[RawRecord]) -> LogBatch | None:
        start = self._positions.get(partition)
        if start is None:
            return None
        if raws[0].offset < start:
            raws = [raw for raw in raws if raw.offset >= start]
            if not raws:
                return None
        records, foreign = self._decoders[partition].decode(raws)
        if foreign:
            self._report(foreign)
        return self._batch(partition, start, raws[-1].offset + 1, records)

    def _batch(self, partition: int, start: int, following: int, records: list[Record]) -> LogBatch:
        self._positions[partition] = following
        self._moved[partition] = self._answered_at = self._loop.time()
        self._progress.read(partition, following, self._decoders[partition].append_ms)
        return LogBatch(partition, start, following, records)

    def _report(self, foreign: Iterable[Foreign]) -> None:
        counts: dict[Cause, int] = {}
        for each in foreign:
            counts[each.cause] = counts.get(each.cause, 0) + 1
            self._hooks.foreign(each.partition, each.offset, each.cause, each.raw)
        for cause, count in counts.items():
            self._hooks.skipped(cause, count)
            _logger.warning("skipped %d records of %s that are not ours: %s", count, self._connection.topic, cause)

    # --- when records cannot be read

    async def _read_one_by_one(self, client: ConsumerClient, max_records: int) -> list[LogBatch]:
        """Past a record that breaks the client's parser. What the client holds is thrown away and asked for again."""
        batches: list[LogBatch] = []
        left = max_records
        for partition, start in list(self._positions.items()):
            if left <= 0:
                break
            try:
                data = await client.raw(partition, start)
            except CLIENT_ERRORS as error:
                _logger.debug("partition %d: %s", partition, describe(error))
                continue
            batch = self._take_carefully(partition, start, read_carefully(data, start), left)
            if batch is not None:
                left -= len(batch.records)
                batches.append(batch)
        client.assign(self._positions)
        self._ahead.clear()
        return batches

    def _take_carefully(
        self, partition: int, start: int, found: Iterator[RawRecord | Unreadable], limit: int
    ) -> LogBatch | None:
        raws: list[RawRecord] = []
        broken: list[Foreign] = []
        following = start
        for each in found:
            if len(raws) >= limit:
                break
            if isinstance(each, Unreadable):
                broken += [
                    Foreign(partition, offset, Cause.UNREADABLE, each.raw) for offset in range(each.start, each.next)
                ]
                following = each.next
            else:
                raws.append(each)
                following = each.offset + 1
        if following == start:
            return None
        records, foreign = self._decoders[partition].decode(raws)
        self._report([*foreign, *broken])
        return self._batch(partition, start, following, records)

    # --- when nothing comes

    async def _out_of_range(self, client: ConsumerClient) -> None:
        """A position that the log does not have (yet, or any more). The client says so with each answer, so it must
        not ask while that is waited out."""
        try:
            starts, ends = await self._inquirer.starts(), await self._inquirer.ends()
        except Unavailable as error:
            _logger.debug("%s", error)
            await asyncio.sleep(AHEAD_INTERVAL)
            return
        for partition, offset in self._positions.items():
            if offset < starts[partition]:
                raise Gone(
                    f"partition {partition}: {offset} is below the first offset kept, {starts[partition]}",
                    partition=partition,
                    start=starts[partition],
                )
            if offset > ends[partition]:
                client.pause(partition)
                self._ahead.add(partition)

    def _no_longer_ahead(self, client: ConsumerClient, partition: int) -> None:
        if partition in self._ahead:
            self._ahead.discard(partition)
            client.resume(partition)

    async def _watch(self) -> list[LogBatch]:
        """Compare with what the log has. Gives batches without records, for offsets that hold none."""
        now = self._loop.time()
        if not self._ahead and now - self._watched_at < WATCH_INTERVAL:
            return []
        self._watched_at = now
        try:
            ends = await self._inquirer.recent_ends(AHEAD_INTERVAL if self._ahead else WATCH_INTERVAL)
            self._answered_at = now
        except Unavailable as error:
            _logger.debug("%s", error)
            if now - self._answered_at > self._connection.settings.replace_after:
                # With nobody to talk to the client tries all brokers twenty times a second for each partition.
                await self._replace("no broker answers")
                self._is_lost = True
            return []
        if self._client is None:
            return []
        for partition in [each for each in self._ahead if ends[each] >= self._positions[each]]:
            self._client.seek(partition, self._positions[partition])
            self._no_longer_ahead(self._client, partition)
        behind = [each for each in self._positions if ends[each] > self._positions[each]]
        return await self._mend(self._client, behind, ends, now)

    async def _watch_the_others(self, client: ConsumerClient) -> list[LogBatch]:
        """Some partitions get on: look whether others do not. By what is known of the ends: asking would hold up those
        that do."""
        now = self._loop.time()
        if now - self._watched_at < WATCH_INTERVAL:
            return []
        self._watched_at = now
        ends = self._inquirer.known_ends
        stuck = [each for each in self._positions if each in ends and self._is_stuck(each, ends[each], now)]
        return await self._mend(client, stuck, ends, now)

    async def _mend(
        self, client: ConsumerClient, suspects: Sequence[int], ends: Mapping[int, int], now: float
    ) -> list[LogBatch]:
        """Step over offsets that hold no record; replace a client that has nothing although the log has more."""
        holes = await asyncio.gather(*[self._hole(client, each) for each in suspects])
        if stuck := [each for each in self._positions if each in ends and self._is_stuck(each, ends[each], now)]:
            await self._replace(f"partitions {stuck} have more, and nothing comes")
            for partition in stuck:
                self._moved[partition] = self._loop.time()
        return [hole for hole in holes if hole is not None]

    async def _hole(self, client: ConsumerClient, partition: int) -> LogBatch | None:
        """What the client passed over without a record: the marks of somebody's transactions."""
        start = self._positions[partition]
        try:
            following = await client.position(partition)
        except CLIENT_ERRORS as error:
            _logger.debug("partition %d has no position: %s", partition, describe(error))
            return None
        return self._batch(partition, start, following, []) if following > start else None

    def _is_stuck(self, partition: int, end: int, now: float) -> bool:
        if end <= self._positions[partition]:
            self._moved[partition] = now
        return now - self._moved[partition] > self._connection.settings.replace_after
