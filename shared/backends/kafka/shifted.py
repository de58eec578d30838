"""A log that goes on where a former one stopped: Kafka counts a new topic from 0, clients count on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from shared.backends.kafka.log import KafkaLog
from shared.errors import Gone
from shared.offers import Replicas
from shared.ports import LogTail
from shared.position import Epoch
from shared.records import Entry, ForeignRecord, FormerEpoch, LogBatch, NewEvent, Record


class ShiftedLog:
    """`EventLog` in front of a `KafkaLog`: offset o of a partition is its topic's offset o - base."""

    def __init__(self, log: KafkaLog, bases: Mapping[int, int], former: Sequence[FormerEpoch]) -> None:
        self._log = log
        self._bases = [bases.get(partition, 0) for partition in range(log.partitions)]
        self._former = former

    @property
    def epoch(self) -> Epoch:
        """See `EventLog.epoch`."""
        return self._log.epoch

    @property
    def partitions(self) -> int:
        """See `EventLog.partitions`."""
        return self._log.partitions

    @property
    def decides_identity(self) -> bool:
        """See `EventLog.decides_identity`."""
        return False

    @property
    def former(self) -> Sequence[FormerEpoch]:
        """See `SuccessorLog.former`."""
        return self._former

    @property
    def origins(self) -> Mapping[int, int]:
        """See `SuccessorLog.origins`."""
        return dict(enumerate(self._bases))

    async def append(self, partition: int, events: Sequence[NewEvent], *, base: int) -> Sequence[Entry]:
        """See `EventLog.append`."""
        shift = self._bases[partition]
        entries = await self._log.append(partition, events, base=max(base - shift, 0))
        return [entry + shift if isinstance(entry, int) else entry for entry in entries]

    def tail(self, positions: Mapping[int, int]) -> LogTail:
        """See `EventLog.tail`."""
        return _ShiftedTail(self._log.tail({}), self._bases, positions)

    async def ends(self) -> Mapping[int, int]:
        """See `EventLog.ends`."""
        return self._shifted(await self._log.ends())

    async def starts(self) -> Mapping[int, int]:
        """See `EventLog.starts`."""
        return self._shifted(await self._log.starts())

    async def firsts(self) -> Mapping[int, tuple[int, int]]:
        """See `DatedLog.firsts`."""
        return {p: (offset + self._bases[p], stamp) for p, (offset, stamp) in (await self._log.firsts()).items()}

    async def trim(self, below: Mapping[int, int]) -> None:
        """See `TrimmableLog.trim`."""
        own = {p: offset - self._bases[p] for p, offset in below.items() if offset > self._bases[p]}
        if own:
            await self._log.trim(own)

    def _shifted(self, offsets: Mapping[int, int]) -> dict[int, int]:
        return {partition: offset + self._bases[partition] for partition, offset in offsets.items()}

    def on_foreign(self, call: Callable[[ForeignRecord], None]) -> Callable[[], None]:
        """See `ForeignSource.on_foreign`."""

        def shifted(record: ForeignRecord) -> None:
            offset = record.offset + self._bases[record.partition]
            call(ForeignRecord(record.partition, offset, record.cause, record.raw))

        return self._log.on_foreign(shifted)

    def leaders(self) -> Mapping[int, int]:
        """See `LeaderSource.leaders`."""
        return self._log.leaders()

    def replicas(self) -> Mapping[int, Replicas]:
        """See `ReplicatedLog.replicas`."""
        return self._log.replicas()


class _ShiftedTail:
    """`LogTail`."""

    def __init__(self, tail: LogTail, bases: Sequence[int], positions: Mapping[int, int]) -> None:
        self._tail = tail
        self._bases = bases
        for partition, offset in positions.items():
            self.seek(partition, offset)

    async def poll(self, *, max_records: int, timeout: float) -> Sequence[LogBatch]:
        try:
            return [self._shifted(batch) for batch in await self._tail.poll(max_records=max_records, timeout=timeout)]
        except Gone as error:
            partition = int(error.members["partition"])
            start = int(error.members["start"]) + self._bases[partition]
            raise Gone(f"partition {partition} begins at {start}", partition=partition, start=start) from error

    def seek(self, partition: int, offset: int) -> None:
        # Below its beginning there is nothing, which the topic would not say of what stands before its offset 0.
        self._tail.seek(partition, max(offset - self._bases[partition], 0))

    def forget(self, partition: int) -> None:
        self._tail.forget(partition)

    async def close(self) -> None:
        await self._tail.close()

    def _shifted(self, batch: LogBatch) -> LogBatch:
        base = self._bases[batch.partition]
        records = [
            Record(
                record.partition,
                record.offset + base,
                record.append_ms,
                record.identity,
                record.stream,
                record.key,
                record.value,
                record.data_at,
                record.kind,
                record.accepted_ms,
                record.base + base,
            )
            for record in batch.records
        ]
        return LogBatch(batch.partition, batch.start + base, batch.next + base, records)
