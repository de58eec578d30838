"""Reading stretches of the log again: what the store has not got yet and no ring holds any more.

One reader a node, shared by all who need it (design rule 7: never a consumer for a subscriber). What it reads is not
judged again: the node's tail has done that, and keeps the few offsets that are not visible.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import NamedTuple

from cdrs.tail import Tail
from shared.errors import Gone, Unavailable
from shared.ports import EventLog, LogTail
from shared.records import Record

CHUNK_RECORDS = 512
CHUNK_BYTES = 1024 * 1024
"""What is read at once; the batch that crosses the bound is still part of it. Chunks begin at multiples of so many
offsets, so that readers at different places share them."""
KEPT_BYTES = 32 * 1024 * 1024
"""Chunks kept for the next who asks."""
TIMEOUT = 2.5
"""Longest wait for one chunk, its turn included, in seconds."""
POLL = 0.5
IDLE = 10.0
"""Seconds without a question after which the reader is closed."""
RECORD_OVERHEAD = 512


class Stretch(NamedTuple):
    """The visible records of [start, next)."""

    start: int
    next: int
    records: list[Record]
    size: int


class LogReader:
    """Stretches of the log between where the tail began and where it is.

    One question is read at a time; equal ones share the answer. Memory and waits are bounded.
    """

    def __init__(self, log: EventLog, tail: Tail) -> None:
        self._log = log
        self._tail = tail
        self._reader: LogTail | None = None
        self._place = -1, -1
        """Partition and offset that the reader would go on with."""
        self._used = False
        self._turn = asyncio.Lock()
        self._kept: OrderedDict[tuple[int, int], Stretch] = OrderedDict()
        self._kept_bytes = 0
        self.reads = 0
        """Chunks that were read of the log."""

    def covers(self, partition: int, offset: int) -> bool:
        """Whether the log can be read from here on in the store's stead."""
        begin = self._tail.begins.get(partition)
        return begin is not None and begin <= offset

    async def read(self, partition: int, start: int, stop: int) -> Stretch:
        """Visible records from ``start`` on, which is covered and read by the tail; ends before ``stop`` where that is
        far. Raises `Unavailable`."""
        try:
            async with asyncio.timeout(TIMEOUT):
                chunk = await self._chunk(partition, start)
        except TimeoutError:
            raise Unavailable("the log could not be read again in time", retry_after=1.0) from None
        except Gone:
            # Whether anybody has it yet is for the persister to find out, and for the store to say.
            raise Unavailable("the log has deleted it; the store is about to say so", retry_after=1.0) from None
        end = min(chunk.next, stop)
        return Stretch(start, end, [r for r in chunk.records if start <= r.offset < end], chunk.size)

    async def run(self) -> None:
        """Give the reader back when nobody has asked for a while, and in the end."""
        try:
            while True:
                await asyncio.sleep(IDLE)
                if not self._used:
                    async with self._turn:
                        await self._end()
                    self._kept.clear()
                    self._kept_bytes = 0
                self._used = False
        finally:
            await self._end()

    async def _chunk(self, partition: int, start: int) -> Stretch:
        """The chunk that holds this offset."""
        at = max(start - start % CHUNK_RECORDS, self._tail.begins[partition])
        while True:
            chunk = self._kept.get((partition, at))
            if chunk is None:
                async with self._turn:
                    chunk = self._kept.get((partition, at)) or await self._read(partition, at)
            else:
                self._kept.move_to_end((partition, at))
            if chunk.next > start:
                return chunk
            if chunk.next == at:  # the rings were begun anew below it meanwhile
                raise Unavailable("the node has not read so far", retry_after=POLL)
            at = chunk.next

    async def _read(self, partition: int, at: int) -> Stretch:
        limit = min(at - at % CHUNK_RECORDS + CHUNK_RECORDS, self._tail.rings[partition].next)
        following, place, size = at, at, 0
        records: list[Record] = []
        done = False
        try:
            reader = self._open(partition, at)
            while following < limit and size < CHUNK_BYTES:
                for batch in await reader.poll(max_records=limit - following, timeout=POLL):
                    if batch.partition != partition or batch.next <= following:
                        continue
                    place = batch.next
                    records += [record for record in batch.records if following <= record.offset < limit]
                    following = min(batch.next, limit)
                    size = sum(len(record.value) + RECORD_OVERHEAD for record in records)
            # A batch may reach beyond the limit: the next chunk begins there, but the reader stands behind it.
            self._place = partition, place
            done = True
        finally:
            if not done:
                await self._end()
        self.reads += 1
        if not self.covers(partition, at):
            # While this was read, others stored so much that the tail no longer knows what of it is not visible.
            raise Unavailable("the store has it by now", retry_after=POLL)
        hidden = self._tail.hidden[partition]
        visible = [record for record in records if record.offset not in hidden]
        # Where it ends early, at the tail's place or for its size, the next one begins there.
        chunk = Stretch(at, following, visible, size + RECORD_OVERHEAD)
        self._keep(partition, chunk)
        return chunk

    def _keep(self, partition: int, chunk: Stretch) -> None:
        self._kept[partition, chunk.start] = chunk
        self._kept_bytes += chunk.size
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.size

    # --- the reader

    def _open(self, partition: int, at: int) -> LogTail:
        self._used = True
        if self._reader is None:
            self._reader = self._log.tail({partition: at})
        elif self._place != (partition, at):
            if self._place[0] != partition:
                self._reader.forget(self._place[0])
            self._reader.seek(partition, at)
        self._place = partition, at
        return self._reader

    async def _end(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.close()
