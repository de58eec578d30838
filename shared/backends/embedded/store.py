"""The store of the embedded profile: the log's own file, so everything that is in the log is in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from shared.backends.embedded.calls import Call, CreateCall
from shared.backends.embedded.database import Database
from shared.backends.embedded.pool import ReadPool
from shared.backends.embedded.reading import (
    GROUP_BYTES,
    Row,
    read_append_time,
    read_by_prefix,
    read_ends,
    read_offset_at,
    read_originals,
    read_places,
    read_records,
    read_rows,
    read_stream,
    read_stream_ids,
    read_streams,
)
from shared.backends.embedded.retention import Retention
from shared.backends.embedded.schema import offset_in, place_of
from shared.errors import StaleStream, StreamConflict, Unavailable
from shared.records import (
    Duplicate,
    Expiry,
    FeedBatch,
    HistoryPage,
    NewEvent,
    PageQuery,
    Record,
    StreamInfo,
    prefixes_of,
)

SCAN_BYTES: Final = 16 * 1024 * 1024
"""Most that one page reads from the file, in bytes; a page of a rare stream may end early, which its ``next`` says."""
MAX_FOUND: Final = 10


class _Log(Protocol):
    @property
    def partitions(self) -> int: ...
    async def ends(self) -> Mapping[int, int]: ...
    async def starts(self) -> Mapping[int, int]: ...
    def deadline(self) -> float: ...
    async def write(self, call: Call) -> object: ...


class EmbeddedStore:
    """`EventStore` over the tables of `EmbeddedLog`. Its checkpoints are the log's ends."""

    def __init__(
        self, log: _Log, pool: ReadPool, retention: Retention, holes: Mapping[int, Sequence[tuple[int, int]]]
    ) -> None:
        """``holes``: per partition what was lost by damage; only a recovery adds to it, and nothing is open then."""
        self._log = log
        self._pool = pool
        self._retention = retention
        self._holes = holes

    @property
    def is_log(self) -> bool:
        """See `EventStore.is_log`."""
        return True

    async def checkpoints(self) -> Mapping[int, int]:
        """See `EventStore.checkpoints`."""
        return await self._log.ends()

    async def starts(self) -> Mapping[int, int]:
        """See `EventStore.starts`."""
        return await self._log.starts()

    async def expire(self, expiry: Expiry) -> bool:
        """See `ExpiringStore.expire`."""
        return await self._retention.delete(expiry)

    async def persist(self, *batches: FeedBatch) -> None:
        """See `EventStore.persist`: what the log holds is in the store already."""

    async def give_up(self, partition: int, start: int, stop: int) -> None:
        """See `EventStore.give_up`: what the log has deleted is not in the store either, and both know it."""

    async def lookup(self, partition: int, events: Sequence[NewEvent]) -> Mapping[bytes, Duplicate]:
        """See `EventStore.lookup`."""
        return await self._pool.ask(lambda db: _lookup(db, events))

    async def admit(self, spreads: Mapping[str, int]) -> None:
        """See `EventStore.admit`."""
        for stream, spread in spreads.items():
            try:
                await self.create_stream(stream, spread=spread)
            except StreamConflict as error:
                raise StaleStream(error.detail) from None

    async def page(self, query: PageQuery) -> HistoryPage:
        """See `EventStore.page`."""
        holes = self._holes.get(query.partition, ())
        return await self._pool.ask(lambda db: read_page(db, query, self._log.partitions, holes))

    async def find(self, stream: str, event_id: str, source: str | None) -> Sequence[Record]:
        """See `EventStore.find`."""
        return await self._pool.ask(lambda db: _find(db, stream, event_id, source))

    async def offset_at(self, append_ms: int) -> Mapping[int, int]:
        """See `EventStore.offset_at`."""
        return await self._pool.ask(lambda db: read_offset_at(db, read_ends(db, self._log.partitions), append_ms))

    async def append_time(self, partition: int, offset: int) -> int | None:
        """See `EventStore.append_time`."""
        return await self._pool.ask(lambda db: read_append_time(db, partition, offset))

    async def streams(self, *, after: str, limit: int) -> Sequence[StreamInfo]:
        """See `EventStore.streams`."""
        return await self._pool.ask(lambda db: read_streams(db, after=after, limit=limit))

    async def stream(self, name: str) -> StreamInfo | None:
        """See `EventStore.stream`."""
        return await self._pool.ask(lambda db: read_stream(db, name))

    async def create_stream(self, name: str, *, spread: int) -> StreamInfo:
        """See `EventStore.create_stream`."""
        await self._log.write(CreateCall(name, spread, deadline=self._log.deadline()))
        info = await self.stream(name)
        if info is None:
            raise Unavailable("the stream is not there although it was created")
        return info


def read_page(db: Database, query: PageQuery, partitions: int, holes: Sequence[tuple[int, int]] = ()) -> HistoryPage:
    """Answer a query from the file as it is now. ``holes``: what was lost by damage."""
    with db.snapshot():
        end = read_ends(db, partitions)[query.partition]
        start, high = min(query.start, end.next), min(query.stop, end.next)
        low = max(start, end.first)
        page = _kept(db, query, low, high)
    following = page.next
    if low >= high or (query.backwards and following <= low):
        # There is nothing more in the range: below the floor nothing is kept.
        following = start if query.backwards else max(high, start)
    first, last = (following, high) if query.backwards else (start, following)
    deleted = [(first, min(end.first, last))] if first < min(end.first, last) else []
    first = max(first, end.first)
    missing = [(max(begin, first), min(stop, last)) for begin, stop in holes if begin < last and stop > first]
    return HistoryPage(page.records, following, missing, deleted)


def _kept(db: Database, query: PageQuery, low: int, high: int) -> HistoryPage:
    """The page over [low, high), which is kept."""
    if low >= high or query.limit <= 0:
        return HistoryPage([], high if query.backwards else low)
    numbers: list[int] | None = None
    if query.streams is not None:
        numbers = [number for number, _ in read_stream_ids(db, query.streams).values()]
    return _PageReader(db, query, numbers).read(low, high)


class _PageReader:
    """Reads rows until the page is full, the range exhausted, or enough was read."""

    def __init__(self, db: Database, query: PageQuery, numbers: list[int] | None) -> None:
        self._db = db
        self._query = query
        self._numbers = numbers
        self._names = None if query.streams is None else frozenset(query.streams)
        self._records: list[Record] = []
        self._size = 0

    def read(self, low: int, high: int) -> HistoryPage:
        """The page over [low, high), which is below the checkpoint."""
        backwards = self._query.backwards
        scanned = 0
        while low < high and scanned < SCAN_BYTES:
            rows = self._rows(low, high)
            if not rows:
                low, high = (low, low) if backwards else (high, high)
                break
            scanned += sum(row.size for row in rows)
            last = self._take(rows, low, high)
            if last is not None:
                return HistoryPage(self._records, last.offset if backwards else last.offset + 1)
            if backwards:
                high = max(low, offset_in(rows[-1].place))
            else:
                low = min(high, offset_in(rows[-1].place) + rows[-1].records)
        return HistoryPage(self._records, high if backwards else low)

    def _rows(self, low: int, high: int) -> list[Row]:
        query = self._query
        wanted, room = query.limit - len(self._records), query.max_bytes - self._size
        needed: list[Row] = []
        size = 0
        for row in read_rows(
            self._db,
            place_of(query.partition, low),
            place_of(query.partition, high),
            limit=wanted,
            streams=self._numbers,
            backwards=query.backwards,
        ):
            if needed and (wanted <= 0 or room <= 0 or size + row.size > GROUP_BYTES):
                break
            needed.append(row)
            size += row.size
            wanted -= row.matching
            room -= row.size * row.matching // row.records
        return needed

    def _take(self, rows: Sequence[Row], low: int, high: int) -> Record | None:
        """Put records into the page; the last one if it is full."""
        query, names = self._query, self._names
        records = read_records(self._db, rows)
        if query.backwards:
            records.reverse()
        for record in records:
            if low <= record.offset < high and (names is None or record.stream in names):
                self._records.append(record)
                self._size += len(record.value)
                if len(self._records) >= query.limit or self._size >= query.max_bytes:
                    return record
        return None


def _find(db: Database, stream: str, event_id: str, source: str | None) -> list[Record]:
    prefixes = prefixes_of(stream, event_id, source)
    places = [place for prefix in prefixes for place in read_by_prefix(db, prefix, limit=MAX_FOUND)]
    found = read_places(db, places)
    return [found[place] for place in sorted(found)][:MAX_FOUND]


def _lookup(db: Database, events: Sequence[NewEvent]) -> dict[bytes, Duplicate]:
    with db.snapshot():
        originals = read_originals(db, [event.identity for event in events])
    asked = {event.identity: event for event in events}
    return {identity: original.duplicate(asked[identity]) for identity, original in originals.items()}
