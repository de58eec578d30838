"""Questions about the past, answered from the store and, above its checkpoint, from the node's rings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cdrs.rereading import CHUNK_RECORDS, LogReader
from cdrs.tail import Tail
from shared.errors import InvalidRequest, Unavailable
from shared.ports import EventLog, EventStore
from shared.records import HistoryPage, PageQuery, Record, prefixes_of
from shared.ring import PartitionRing

PAGE_RECORDS = 10_000
PAGE_BYTES = 8 * 1024 * 1024
"""What one page is cut down to, whatever was asked for."""
FOUND = 10


class HistoryReader:
    """Store and rings as one history, complete up to what the node's tail has read.

    Where the log is the store too, the checkpoint is the log's end and the store alone answers. Elsewhere the rings
    reach down to the checkpoint as a rule; while they do not, the log is read again in between, as also where the store
    is away and the tail began below. What nobody can read is refused, never skipped.
    """

    def __init__(self, log: EventLog, store: EventStore, tail: Tail) -> None:
        self._log = log
        self._store = store
        self._tail = tail
        self._one_tier = log.decides_identity
        self.log_reader = LogReader(log, tail)

    async def page(self, query: PageQuery) -> HistoryPage:
        """`shared.ports.History.page`."""
        query = self._checked(query)
        ring = self._tail.rings.get(query.partition)
        if ring is None:
            raise Unavailable("the node is starting", retry_after=1.0)
        if query.partition in self._tail.broken:
            raise Unavailable(self._tail.broken[query.partition], retry_after=5.0)
        if query.backwards:
            return await self._page_back(query, ring)
        if ring.covers(query.start) and query.stop <= ring.next:
            return _from_ring(ring, query)
        if self._one_tier:
            return await self._store.page(query)
        try:
            page = await self._store.page(query)
        except Unavailable:
            if not self.log_reader.covers(query.partition, query.start):
                raise
            page = HistoryPage([], query.start)
        if page.next >= query.stop:
            return page
        at = max(page.next, query.start)  # a store whose checkpoint lies below the start says so by its `next`
        if not ring.covers(at):
            return page if page.next > query.start else await self._page_of_log(query, ring)
        size = sum(len(record.value) for record in page.records)
        if len(page.records) >= query.limit or size >= query.max_bytes:
            return page
        rest = _from_ring(ring, _narrowed(query, at, query.stop, len(page.records), size))
        return HistoryPage([*page.records, *rest.records], rest.next, page.missing, page.deleted)

    async def _page_of_log(self, query: PageQuery, ring: PartitionRing) -> HistoryPage:
        """The beginning of a forward page, out of the log; empty where it cannot be read from there, or not yet."""
        if query.start >= ring.next or not self.log_reader.covers(query.partition, query.start):
            return HistoryPage([], query.start)
        stretch = await self.log_reader.read(query.partition, query.start, query.stop)
        return _forwards(stretch.records, query, stretch.next)

    async def _page_back(self, query: PageQuery, ring: PartitionRing) -> HistoryPage:
        if self._one_tier:
            return await self._store.page(query)
        if query.stop > ring.next:
            # A page from the end on has no place to say that its end is missing.
            raise Unavailable(f"the node has read partition {query.partition} up to {ring.next} only", retry_after=1.0)
        border = max(ring.start, query.start)
        if query.stop > ring.start:
            recent = _backwards(_all(ring, border, query.stop), query, border)
            size = sum(len(record.value) for record in recent.records)
            if border == query.start or len(recent.records) >= query.limit or size >= query.max_bytes:
                return recent
            older = _narrowed(query, query.start, border, len(recent.records), size)
            page = await self._older(older)
            return HistoryPage([*recent.records, *page.records], page.next, page.missing, page.deleted)
        return await self._older(query)

    async def _older(self, query: PageQuery) -> HistoryPage:
        """A backward page below the ring: of the log down to the checkpoint, else of the store."""
        checkpoint = 0
        try:
            checkpoint = (await self._store.checkpoints()).get(query.partition, 0)
            if query.stop <= checkpoint:
                return await self._store.page(query)
        except Unavailable:
            if not self.log_reader.covers(query.partition, query.stop - 1):
                raise
        low = max(query.start, checkpoint, query.stop - CHUNK_RECORDS, self._tail.begins[query.partition])
        records: list[Record] = []
        at = low
        while at < query.stop:
            stretch = await self.log_reader.read(query.partition, at, query.stop)
            records += stretch.records
            at = stretch.next
        return _backwards(records, query, low)

    async def find(self, stream: str, event_id: str, source: str | None) -> Sequence[Record]:
        """`shared.ports.History.find`."""
        found = list(await self._store.find(stream, event_id, source))
        if not self._one_tier:
            prefixes = tuple(prefixes_of(stream, event_id, source))
            seen = {record.identity for record in found}
            floors = await self._store.starts()
            for partition, ring in self._tail.rings.items():
                start = max(ring.start, floors.get(partition, 0))  # what was deleted is not found in memory either
                records, _ = ring.read(start, ring.next, limit=len(ring), max_bytes=2**62, streams=[stream])
                found += [r for r in records if r.identity.startswith(prefixes) and r.identity not in seen]
            if not found and await self._is_between():
                raise Unavailable("the store has not got everything yet", retry_after=1.0)
        return found[:FOUND]

    async def _is_between(self) -> bool:
        """Whether there are records that neither the store nor a ring has, but the log alone."""
        checkpoints = await self._store.checkpoints()
        return any(checkpoints.get(partition, 0) < ring.start for partition, ring in self._tail.rings.items())

    async def offset_at(self, append_ms: int) -> Mapping[int, int]:
        """`shared.ports.History.offset_at`."""
        offsets = dict(await self._store.offset_at(append_ms))
        if self._one_tier:
            return offsets
        for partition, ring in self._tail.rings.items():
            offset = offsets.get(partition, 0)
            if ring.covers(offset):
                later = (record.offset for record in _all(ring, offset, ring.next) if record.append_ms >= append_ms)
                offsets[partition] = next(later, ring.next)
        return offsets

    async def append_time(self, partition: int, offset: int) -> int | None:
        """`shared.ports.History.append_time`."""
        ring = self._tail.rings.get(partition)
        if not self._one_tier and ring is not None and offset >= ring.start:
            records = _all(ring, ring.start, offset + 1)
            if records:
                return records[-1].append_ms
        return await self._store.append_time(partition, offset)

    def _checked(self, query: PageQuery) -> PageQuery:
        if not 0 <= query.partition < self._log.partitions or query.limit < 1 or query.start < 0:
            raise InvalidRequest("no such page")
        return PageQuery(
            query.partition,
            query.start,
            max(query.stop, query.start),
            min(query.limit, PAGE_RECORDS),
            min(query.max_bytes, PAGE_BYTES),
            query.streams,
            query.backwards,
        )


def _narrowed(query: PageQuery, start: int, stop: int, records: int, size: int) -> PageQuery:
    """What is left of a query after so many records and bytes."""
    limit, max_bytes = max(query.limit - records, 1), max(query.max_bytes - size, 1)
    return PageQuery(query.partition, start, stop, limit, max_bytes, query.streams, query.backwards)


def _all(ring: PartitionRing, start: int, stop: int) -> list[Record]:
    return ring.read(max(start, ring.start), stop, limit=len(ring) + 1, max_bytes=2**62)[0]


def _from_ring(ring: PartitionRing, query: PageQuery) -> HistoryPage:
    """A forward page out of the ring, which covers its start."""
    records, reached = ring.read(
        query.start, query.stop, limit=query.limit, max_bytes=query.max_bytes, streams=query.streams
    )
    return HistoryPage(records, reached)


def _forwards(records: Sequence[Record], query: PageQuery, end: int) -> HistoryPage:
    """A forward page out of the records up to ``end``."""
    wanted = None if query.streams is None else frozenset(query.streams)
    taken: list[Record] = []
    size = 0
    for record in records:
        if wanted is not None and record.stream not in wanted:
            continue
        if len(taken) >= query.limit or size >= query.max_bytes:
            return HistoryPage(taken, record.offset)
        taken.append(record)
        size += len(record.value)
    return HistoryPage(taken, end)


def _backwards(records: Sequence[Record], query: PageQuery, border: int) -> HistoryPage:
    """A backward page out of the records in [border, stop)."""
    wanted = None if query.streams is None else frozenset(query.streams)
    taken: list[Record] = []
    size = 0
    for record in reversed(records):
        if wanted is not None and record.stream not in wanted:
            continue
        if len(taken) >= query.limit or size >= query.max_bytes:
            return HistoryPage(taken, record.offset + 1)
        taken.append(record)
        size += len(record.value)
    return HistoryPage(taken, border)
