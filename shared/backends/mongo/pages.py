"""Pages of history."""

from __future__ import annotations

from collections.abc import Sequence

from shared.backends.mongo.documents import Document, holes, offset_of, record_of
from shared.backends.mongo.driver import Calls, Database, fetch_until
from shared.backends.mongo.queries import records_between
from shared.records import HistoryPage, PageQuery, Record

LEAST_DOCUMENT = 128
"""Bytes; what a document takes at least, for guessing how many of them fill a page."""
MOST_A_BATCH = 2000
MOST_SCANNED = 20_000
"""Documents that one page reads; where most of them are stubs it ends early, which its ``next`` says."""


class PageReader:
    """Reads documents until the page is full or the range exhausted."""

    def __init__(self, database: Database, calls: Calls, partition: bytes, query: PageQuery) -> None:
        self._database = database
        self._calls = calls
        self._partition = partition
        self._query = query
        self._records: list[Record] = []
        self._offsets: list[int] = []
        self._size = 0
        self._is_full = False
        self.met_shadow = False
        """Whether reading ended at what is deleted: the floor is above it."""

    async def read(self, low: int, high: int) -> HistoryPage:
        """The page over [low, high), which is below the checkpoint. ``missing`` has every offset that was not found."""
        query = self._query
        at, end = low, high
        while at < end and not self._is_full and len(self._offsets) < MOST_SCANNED:
            wanted = query.limit - len(self._records)
            before = len(self._offsets)
            await self._read_some(at, end, wanted)
            if not self._is_full and len(self._offsets) - before < wanted:
                at = end
            elif query.backwards:
                end = max(self._offsets[-1], low)
            else:
                at = min(self._offsets[-1] + 1, high)
        border = (low if at >= end else end) if query.backwards else at
        return HistoryPage(self._records, border, self._missing(low, high, border))

    async def _read_some(self, low: int, high: int, limit: int) -> None:
        query = self._query
        question = records_between(
            self._partition, low, high, streams=query.streams, backwards=query.backwards, limit=limit
        )
        room = max(query.max_bytes - self._size, 0) // LEAST_DOCUMENT + 1
        await self._calls.read(
            lambda: fetch_until(self._database, question, self._take, batch=min(limit, room, MOST_A_BATCH))
        )

    def _take(self, documents: Sequence[Document]) -> bool:
        query = self._query
        for document in documents:
            self._offsets.append(offset_of(document["_id"]))
            if "u" in document:
                self.met_shadow = self._is_full = True
                return True
            record = record_of(document)
            if record is None:
                continue
            self._records.append(record)
            self._size += len(record.value)
            if len(self._records) >= query.limit or self._size >= query.max_bytes:
                self._is_full = True
                return True
        return False

    def _missing(self, low: int, high: int, border: int) -> list[tuple[int, int]]:
        if self._query.streams is not None:
            return []  # only what is asked for was read
        if self._query.backwards:
            return holes(self._offsets[::-1], border, high)
        return holes(self._offsets, low, border)


def above(page: HistoryPage, start: int, stop: int, floor: int, *, backwards: bool) -> HistoryPage:
    """What a page is where everything below the floor is deleted: none of it is in it, and the page says so. It is a
    page of [start, stop), read from any offset below the floor, or the floor, on."""
    records = [record for record in page.records if record.offset >= floor]
    if backwards:
        following, last = (start if page.next <= floor else page.next), min(floor, stop)
        first = following
    else:
        following = max(page.next, min(floor, stop))
        first, last = start, min(floor, following)
    return HistoryPage(records, following, page.missing, [(first, last)] if first < last else [])
