"""Feeds: what one gateway is sent, from any position on, at its own pace."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping

from cdrs.history import HistoryReader
from cdrs.tail import POLL_RECORDS, Tail
from cdrs.tasks import Wakeup
from shared.clock import Clock
from shared.errors import LinkBroken, Unavailable
from shared.records import FeedBatch, HistoryPage, PageQuery

BATCH_RECORDS = 512
BATCH_BYTES = 1024 * 1024
"""What one batch holds at most (and the record that crosses the bound)."""
HEARTBEAT = 0.8
"""Longest silence of a feed, in seconds; a little less than the second that the port promises."""
PAUSE_AFTER = POLL_RECORDS
"""Records handed out before the event loop gets a turn: as many as the tail may read in one, or a feed falls behind it
while much comes in."""
RETRY = 0.2
"""Pause after a page of history failed or had nothing, in seconds."""

logger = logging.getLogger(__name__)


class FeedCursor:
    """An iterator of `FeedBatch` over some partitions. It owns no records: it points into the rings, and where it is
    below them it reads pages of history, one at a time, until it has caught up.

    Raises `LinkBroken` after `stop`.
    """

    def __init__(self, tail: Tail, history: HistoryReader, clock: Clock, positions: Mapping[int, int]) -> None:
        self._tail = tail
        self._history = history
        self._clock = clock
        self._next = dict(positions)
        self._turns = deque(positions)
        self._wakeup = Wakeup()
        self._page: asyncio.Task[HistoryPage] | None = None
        self._paged = -1
        self._page_after = 0.0
        self._since_pause = 0
        self._is_stopped = False

    def __aiter__(self) -> FeedCursor:
        return self

    async def __anext__(self) -> FeedBatch:
        if self._since_pause >= PAUSE_AFTER:
            self._since_pause = 0
            await asyncio.sleep(0)
        deadline = self._clock.monotonic() + HEARTBEAT
        while True:
            batch = self.ready()
            if batch is not None:
                return batch
            now = self._clock.monotonic()
            if now >= deadline:
                partition = self._turns[0]
                offset = self._next[partition]
                return FeedBatch(partition, offset, offset, [])
            self._since_pause = 0
            until = min(deadline, self._page_after) if self._page_after > now else deadline
            await self._wakeup.wait(until - now)

    def ready(self) -> FeedBatch | None:
        """The next batch if there is one right now. Starts reading history where it is needed."""
        if self._is_stopped:
            raise LinkBroken("the node ended the feed")
        batch = self._from_page() or self._from_rings()
        if batch is not None:
            self._next[batch.partition] = batch.next
            self._since_pause += len(batch.records) + 1
        return batch

    def open(self) -> None:
        """Begin to be woken by the tail."""
        self._tail.watch(self._wakeup)

    async def close(self) -> None:
        """The inverse of `open`; waits for the page under way. Idempotent."""
        self._tail.unwatch(self._wakeup)
        if self._page is not None:
            self._page.cancel()
            await asyncio.wait({self._page})
            self._page = None

    def stop(self) -> None:
        """Make the iterator raise `LinkBroken`, also where it waits."""
        self._is_stopped = True
        self._wakeup.set()

    def _from_rings(self) -> FeedBatch | None:
        turns, rings = self._turns, self._tail.rings
        for _ in range(len(turns)):
            partition = turns[0]
            turns.rotate(-1)
            ring, start = rings.get(partition), self._next[partition]
            if ring is None or start >= ring.next:
                continue
            if start >= ring.start:
                records, reached = ring.read(start, ring.next, limit=BATCH_RECORDS, max_bytes=BATCH_BYTES)
                return FeedBatch(partition, start, reached, records)
            if self._page is None and self._clock.monotonic() >= self._page_after:
                query = PageQuery(partition, start, ring.start, BATCH_RECORDS, BATCH_BYTES)
                self._paged = partition
                self._page = asyncio.create_task(self._history.page(query))
                self._page.add_done_callback(self._page_is_done)
        return None

    def _page_is_done(self, page: asyncio.Task[HistoryPage]) -> None:
        self._wakeup.set()

    def _from_page(self) -> FeedBatch | None:
        task = self._page
        if task is None or not task.done():
            return None
        self._page = None
        partition, start = self._paged, self._next[self._paged]
        try:
            page = task.result()
        except Unavailable:
            page = None
        except Exception as error:
            logger.exception("history of partition %d cannot be read", partition)
            raise LinkBroken("the node cannot read its history") from error
        if page is None or page.next <= start:
            self._page_after = self._clock.monotonic() + RETRY
            return None
        return FeedBatch(partition, start, page.next, page.records, page.missing, page.deleted)
