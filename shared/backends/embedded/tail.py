"""Following the log. What this process commits is handed on in memory; what others commit is looked for."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import apsw

from shared.backends.embedded.database import Database
from shared.backends.embedded.pool import ReadPool
from shared.backends.embedded.reading import read_ends, read_range
from shared.errors import Gone, Unavailable
from shared.records import LogBatch, Record

RECENT_RECORDS: Final = 2048
RECENT_BYTES: Final = 1024 * 1024
"""What is kept in memory of a partition's newest records; whichever comes first."""
QUIET_AFTER: Final = 1.0
LONE_AFTER: Final = 30.0
"""Seconds without a commit of another process after which one is looked for half as often, and an eighth as often: most
of the cost is waking up at all."""
READ_BYTES: Final = 4 * 1024 * 1024
"""Most that one poll reads from the file for a partition, in bytes."""

_logger = logging.getLogger(__name__)


class RecentRecords:
    """The newest records of a partition, as long as this process alone appends to it."""

    __slots__ = ("_ends", "_records", "_size", "_sizes", "start")

    def __init__(self) -> None:
        self.start = 0
        self._records: list[Record] = []
        self._ends: list[int] = []
        self._sizes: list[int] = []
        """For each batch: the offset behind it, and its bytes."""
        self._size = 0

    @property
    def next(self) -> int:
        """The first offset behind them."""
        return self.start + len(self._records)

    def add(self, batch: LogBatch) -> None:
        """Take what was committed."""
        if batch.start != self.next:
            self._forget(len(self._ends))
            self.start = batch.start
        size = sum([len(record.value) for record in batch.records])
        self._records += batch.records
        self._ends.append(batch.next)
        self._sizes.append(size)
        self._size += size
        self._shrink()

    def read(self, offset: int, limit: int) -> list[Record] | None:
        """Records from this offset on; None if they are not kept here."""
        if not self.start <= offset < self.next:
            return None
        at = offset - self.start
        return self._records[at : at + limit]

    def _shrink(self) -> None:
        if len(self._records) <= RECENT_RECORDS * 2 and self._size <= RECENT_BYTES * 2:
            return  # in large steps, because the lists move
        records, size = len(self._records), self._size
        batches = 0
        while batches < len(self._ends) and (records > RECENT_RECORDS or size > RECENT_BYTES):
            records = self.next - self._ends[batches]
            size -= self._sizes[batches]
            batches += 1
        self._forget(batches)

    def _forget(self, batches: int) -> None:
        if not batches:
            return
        end = self._ends[batches - 1]
        del self._records[: end - self.start]
        self._size -= sum(self._sizes[:batches])
        del self._ends[:batches], self._sizes[:batches]
        self.start = end


class Watch:
    """Knows how far the log has come, and wakes those who wait for more.

    Other processes' commits show as a change of SQLite's ``data_version``, which is looked at every poll interval while
    somebody waits, and less often while there are none. That takes microseconds and happens on the event loop, on a
    connection of its own. This process's own commits change it, too.
    """

    def __init__(self, db: Database, pool: ReadPool, *, partitions: int, interval: float) -> None:
        self._db = db
        self._pool = pool
        self._partitions = partitions
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._version: int | None = None
        self._changed = True
        self._looked = 0.0
        self._met = float("-inf")
        """When somebody looked last, and when something of another process was last seen, on the loop's clock."""
        self.ends: dict[int, int] = dict.fromkeys(range(partitions), 0)
        """Per partition the next offset, as far as is known here."""
        self.recent = [RecentRecords() for _ in range(partitions)]

    def committed(self, batches: Sequence[LogBatch], ends: Mapping[int, int]) -> None:
        """This process has committed."""
        for batch in batches:
            self.recent[batch.partition].add(batch)
        self.advance(ends)

    def advance(self, ends: Mapping[int, int]) -> bool:
        """The log has come this far, whoever wrote; whether that was news."""
        known = self.ends
        moved = False
        for partition, end in ends.items():
            if end > known[partition]:
                known[partition] = end
                moved = True
        if moved:
            self._wake()
        return moved

    async def look(self) -> None:
        """See what others have committed, if it is time to. Raises `Unavailable`."""
        if self._loop.time() - self._looked >= self._pause():
            self._check()
        if not self._changed:
            return
        self._changed = False
        try:
            ends = await self._pool.ask(lambda db: read_ends(db, self._partitions))
        except BaseException:
            self._changed = True
            raise
        if self.advance({partition: end.next for partition, end in ends.items()}):
            self._met = self._loop.time()

    async def wait(self, timeout: float) -> None:
        """Until there may be more, at most so long."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.add(waiter)
        if self._timer is None:
            self._timer = self._loop.call_later(self._pause(), self._tick)
        expiry = self._loop.call_later(timeout, _resolve, waiter)
        try:
            await waiter
        finally:
            expiry.cancel()
            self._waiters.discard(waiter)

    def close(self) -> None:
        """Stop looking; whoever waits is woken."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()
        self._db.close()

    def _tick(self) -> None:
        self._timer = None
        if not self._waiters:
            return
        self._check()
        if self._changed:
            self._wake()
        else:
            self._timer = self._loop.call_later(self._pause(), self._tick)

    def _pause(self) -> float:
        alone = self._loop.time() - self._met
        return self._interval * (8 if alone > LONE_AFTER else 2 if alone > QUIET_AFTER else 1)

    def _check(self) -> None:
        self._looked = self._loop.time()
        try:
            version = self._db.setting("data_version")
        except apsw.BusyError:
            return  # another process is about to recover the -wal file
        except apsw.Error as error:
            _logger.warning("the log cannot be watched: %s", error)
            self._changed = True
            return
        if version != self._version:
            self._version = version
            self._changed = True

    def _wake(self) -> None:
        for waiter in self._waiters:
            _resolve(waiter)


class EmbeddedTail:
    """`LogTail` over a `Watch` and the file."""

    def __init__(self, watch: Watch, pool: ReadPool, positions: Mapping[int, int]) -> None:
        self._watch = watch
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._positions = dict(positions)
        self._last = -1
        """Partition that was served last; the next poll begins behind it, so that none starves."""
        self._must_look = True
        """The last poll gave what was known: so it does not wait, and nor does what others wrote."""

    async def poll(self, *, max_records: int, timeout: float) -> Sequence[LogBatch]:
        """See `LogTail.poll`."""
        deadline = self._loop.time() + timeout
        while True:
            batches = [] if self._must_look else await self._read(max_records)
            self._must_look = bool(batches)
            if not batches:
                await self._watch.look()
                batches = await self._read(max_records)
            if batches:
                return batches
            remaining = deadline - self._loop.time()
            if remaining <= 0:
                return []
            await self._watch.wait(remaining)

    def seek(self, partition: int, offset: int) -> None:
        """See `LogTail.seek`."""
        self._positions[partition] = offset

    def forget(self, partition: int) -> None:
        """See `LogTail.forget`."""
        self._positions.pop(partition, None)

    async def close(self) -> None:
        """See `LogTail.close`."""
        self._positions.clear()

    async def _read(self, max_records: int) -> list[LogBatch]:
        found: list[LogBatch] = []
        missing: list[tuple[int, int, int, int]] = []
        left = max_records
        for partition, start, end in self._behind():
            if left <= 0:
                break
            limit = min(left, end - start)
            records = self._watch.recent[partition].read(start, limit)
            if records is None:
                missing.append((partition, start, end, limit))
                left -= limit
            else:
                found.append(LogBatch(partition, start, start + len(records), records))
                left -= len(records)
        if missing:
            found += await self._pool.ask(_reader(missing))
        for batch in found:
            if self._positions.get(batch.partition) == batch.start:
                self._positions[batch.partition] = batch.next
            self._last = batch.partition
        return found

    def _behind(self) -> Iterator[tuple[int, int, int]]:
        partitions = sorted(self._positions)
        first = bisect_right(partitions, self._last)
        for partition in partitions[first:] + partitions[:first]:
            start, end = self._positions[partition], self._watch.ends[partition]
            if start < end:
                yield partition, start, end


def _reader(ranges: Sequence[tuple[int, int, int, int]]) -> Callable[[Database], list[LogBatch]]:
    def read(db: Database) -> list[LogBatch]:
        batches: list[LogBatch] = []
        for partition, start, end, limit in ranges:
            records = read_range(db, partition, start, end, limit=limit, max_bytes=READ_BYTES)
            if records:
                batches.append(LogBatch(partition, start, start + len(records), records))
                continue
            floor = read_ends(db, partition + 1)[partition].first
            if start >= floor:
                raise Unavailable(f"the log lacks offset {start} of partition {partition}: it is damaged")
            raise Gone(
                f"partition {partition}: {start} is below the first offset kept, {floor}",
                partition=partition,
                start=floor,
            )
        return batches

    return read


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
