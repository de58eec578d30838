"""The latest visible records of one partition, kept in memory. Pure; no I/O."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from operator import attrgetter

from shared.records import FeedBatch, Record

_offset = attrgetter("offset")
_COMPACT_AFTER = 1024


class PartitionRing:
    """Covers the offsets [start, next) of one partition without a hole: a record that is not here in that range is not
    visible. Bounded by records and by bytes of their values, whichever comes first."""

    __slots__ = (
        "_by_stream", "_bytes", "_head", "_max_bytes", "_max_records", "_records", "next", "partition", "start",
    )  # fmt: skip

    def __init__(self, partition: int, start: int, *, max_records: int, max_bytes: int) -> None:
        self.partition = partition
        self.start: int = start
        """First offset covered."""
        self.next: int = start
        """First offset not yet covered."""
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._bytes = 0
        self._records: list[Record] = []
        self._head = 0
        self._by_stream: dict[str, Record | deque[Record]] = {}
        """A stream's records; just the record where it is the only one, as a deque takes 0.6 KiB."""

    def __len__(self) -> int:
        return len(self._records) - self._head

    def extend(self, batch: FeedBatch) -> None:
        """Take the records that follow. Raises ``ValueError`` unless the batch starts where the ring ends."""
        if batch.start != self.next:
            raise ValueError(f"partition {self.partition}: {batch.start} does not follow {self.next}")
        by_stream, size, stream = self._by_stream, 0, ""
        held: Record | deque[Record] | None = None
        for record in batch.records:
            size += len(record.value)
            if record.stream != stream:
                stream = record.stream
                held = by_stream.get(stream)
            if isinstance(held, deque):
                held.append(record)
            else:
                held = by_stream[stream] = record if held is None else deque((held, record))
        self._bytes += size
        self._records += batch.records
        self.next = batch.next
        self._evict()

    def _evict(self) -> None:
        records, by_stream = self._records, self._by_stream
        first = head = self._head
        count, size = len(records), self._bytes
        surplus = count - self._max_records
        while head < surplus or (size > self._max_bytes and head < count):
            # every record passes here: no call for each
            record = records[head]
            head += 1
            size -= len(record.value)
            held = by_stream[record.stream]
            if isinstance(held, deque):
                held.popleft()
            if held is record or not held:
                del by_stream[record.stream]
        if head == first:
            return
        self._head, self._bytes, self.start = head, size, records[head - 1].offset + 1
        if head > _COMPACT_AFTER:
            del records[:head]
            self._head = 0

    def forget(self, stop: int) -> None:
        """Cover nothing below ``stop`` any more, which is not above ``next``."""
        kept = [record for record in self._records[self._head :] if record.offset >= stop]
        start, following = max(self.start, stop), self.next
        self._records, self._head, self._bytes, self._by_stream = [], 0, 0, {}
        self.start = self.next = start
        if following > start:
            self.extend(FeedBatch(self.partition, start, following, kept))

    def _at(self, start: int) -> int:
        """Index of the first record from this offset on."""
        records = self._records
        at = len(records) - (self.next - start)
        if self._head <= at < len(records) and records[at].offset == start:
            return at  # nothing is hidden from there on
        return bisect_left(records, start, lo=self._head, key=_offset)

    def covers(self, offset: int) -> bool:
        """Whether reading from this offset on misses nothing."""
        return self.start <= offset <= self.next

    def has_stream(self, stream: str) -> bool:
        """Whether it holds a record of this stream."""
        return stream in self._by_stream

    def is_pressed(self, offset: int) -> bool:
        """Whether what is here from this offset on takes more than half of the room, about: it may soon be evicted."""
        share = (self.next - offset) / max(self.next - self.start, 1)
        return share * max(len(self) / self._max_records, self._bytes / self._max_bytes) > 0.5

    def read(
        self, start: int, stop: int, *, limit: int, max_bytes: int, streams: Sequence[str] | None = None
    ) -> tuple[list[Record], int]:
        """Records in [start, stop), of these streams or of all, and the offset up to which they are complete. ``start``
        must be covered."""
        stop = min(stop, self.next)
        if streams is None:
            at = self._at(start)
            rest = self._records[at : at + limit + 1]
            if stop == self.next and len(rest) <= limit and sum([len(record.value) for record in rest]) <= max_bytes:
                return rest, stop  # as a rule it is all there is
            found: Iterable[Record] = rest
        elif len(streams) == 1:
            found = self._of_stream(streams[0], start)
        else:
            found = self._of_streams(frozenset(streams), start, limit)
        taken: list[Record] = []
        size = 0
        for record in found:
            if record.offset >= stop:
                break
            if len(taken) >= limit or size >= max_bytes:
                return taken, record.offset
            taken.append(record)
            size += len(record.value)
        return taken, stop

    def _of_streams(self, streams: frozenset[str], start: int, limit: int) -> Iterable[Record]:
        """What these have together where that is little; else all there is, looked through as far as it is used."""
        held = [self._by_stream.get(stream) for stream in streams]
        if sum([len(each) if isinstance(each, deque) else 1 for each in held if each is not None]) <= limit:
            return sorted([record for name in streams for record in self._of_stream(name, start)], key=_offset)
        return (record for record in islice(self._records, self._at(start), None) if record.stream in streams)

    def _of_stream(self, stream: str, start: int) -> Iterable[Record]:
        held = self._by_stream.get(stream)
        return _from_right(held if isinstance(held, deque) else () if held is None else (held,), start)


def _from_right(queue: deque[Record] | tuple[Record, ...], start: int) -> Iterable[Record]:
    """Those of a stream's records from ``start`` on, newest first: readers are mostly close behind."""
    found: deque[Record] = deque()
    for record in reversed(queue):
        if record.offset < start:
            break
        found.appendleft(record)
    return found
