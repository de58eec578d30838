"""Feeds: what the log shows, from the nodes into this gateway, each record exactly once and in order per partition.

Every partition is followed at its best-ranked node; the partitions of one node share a feed. When routes change, the
new feed starts before the old one ends; both bring the same bytes for the same offsets, so what was seen is cut off.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

from gateway.publishing import Pause
from gateway.routing import NodeHandle, Router
from shared.clock import to_tick
from shared.errors import CdrsError, InternalError, LinkBroken, StaleEpoch
from shared.records import FeedBatch, Record

FEED_BEAT = 1.0
"""A feed sends at least one batch in so many seconds."""
TICK = 0.5
"""Seconds between two looks for silent feeds."""
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0
BREATH = 32
"""Batches taken from one feed without letting others run."""

logger = logging.getLogger(__name__)


class FeedManager:
    """Follows all partitions of the epoch."""

    def __init__(
        self, router: Router, sink: Callable[[FeedBatch], Pause | None], *, silence: float | None = None
    ) -> None:
        """``sink`` gets every batch, synchronously; within a partition they follow each other without gap or overlap.
        A batch without records only moves ``next``. What it returns is waited for before the same feed brings another
        one. A feed that is silent for ``silence`` seconds counts as broken; by default that is a feed's beat and the
        registry's ``dead_after``."""
        self.next: dict[int, int] = {}
        """Per partition the first offset the sink has not been given."""
        self._router = router
        self._sink = sink
        self._clock = router.clock
        self._silence = FEED_BEAT + router.settings.registry.dead_after if silence is None else silence
        self._feeds: list[_Feed] = []
        self._avoided: dict[NodeHandle, tuple[float, float]] = {}
        """Nodes that ended or refused a feed without breaking: until when they are left alone, and for how long."""
        self._watch = router.watch()
        self._waiters: dict[int, list[tuple[int, asyncio.Future[None]]]] = {}

    @property
    def feeds(self) -> int:
        """Feeds that are open."""
        return len(self._feeds)

    async def run(self, positions: Mapping[int, int]) -> None:
        """Follow the partitions from these offsets on until cancelled. Raises `StaleEpoch` when the nodes have moved
        to another epoch: these offsets mean nothing there."""
        self.next = dict(positions)
        epoch = self._router.epoch
        try:
            async with asyncio.TaskGroup() as tasks:
                due = self._clock.monotonic()
                while True:
                    if self._router.epoch != epoch:
                        raise StaleEpoch(f"the log moved from epoch {epoch} to {self._router.epoch}")
                    self._break_silent(late=self._clock.monotonic() - due)
                    self._follow(tasks)
                    now = self._clock.monotonic()
                    patience = self._patience(now)
                    due = now + patience
                    await self._watch.wait(patience)
        finally:
            self._feeds.clear()

    async def wait_for(self, partition: int, offset: int, *, timeout: float) -> bool:
        """Wait until the sink was given everything up to and including this offset; False where it was not in time."""
        if self.next.get(partition, 0) > offset:
            return True
        entry = (offset, asyncio.get_running_loop().create_future())
        self._waiters.setdefault(partition, []).append(entry)
        try:
            async with asyncio.timeout(timeout):
                await entry[1]
        except TimeoutError:
            return False
        finally:
            if entry in self._waiters.get(partition, ()):
                self._waiters[partition].remove(entry)
        return True

    # --- who is followed where ----------------------------------------------------------------

    def _patience(self, now: float) -> float:
        return min(
            [
                to_tick(TICK, self._clock),
                *(max(until - now, 0.01) for until, _ in self._avoided.values() if until > now),
            ]
        )

    def _break_silent(self, *, late: float) -> None:
        now = self._clock.monotonic()
        for feed in self._feeds:
            if late > TICK or feed.is_held:
                feed.heard = now  # this process was stopped, or has its hands full; the silence is its own
            elif now - feed.heard > self._silence:
                logger.warning("the feed of %s has been silent for %.1f s", feed.handle.key, now - feed.heard)
                self._router.broken(feed.handle)

    def _follow(self, tasks: asyncio.TaskGroup) -> None:
        """Open what the routes ask for, end what is no longer needed."""
        now = self._clock.monotonic()
        wanted: dict[NodeHandle, set[int]] = {}
        for partition in self.next:
            handle = self._best(partition, now)
            if handle is not None:
                wanted.setdefault(handle, set()).add(partition)
        for feed in self._feeds:
            feed.is_current = wanted.get(feed.handle) == feed.partitions
            if feed.is_current:
                del wanted[feed.handle]
        for handle, partitions in wanted.items():
            feed = _Feed(handle, partitions, now)
            self._feeds.append(feed)
            feed.task = tasks.create_task(self._run(feed), name=f"feed of {handle.key}")
        self._end_replaced()

    def _best(self, partition: int, now: float) -> NodeHandle | None:
        for handle in self._router.ranked(partition):
            if handle not in self._avoided or self._avoided[handle][0] <= now:
                return handle
        return None

    def _end_replaced(self) -> None:
        """End feeds of nodes that are gone, and those whose partitions all arrive through a newer one."""
        arriving: set[int] = set()
        for feed in self._feeds:
            if feed.is_current and feed.has_begun:
                arriving |= feed.partitions
        for feed in list(self._feeds):
            is_replaced = not feed.is_current and feed.partitions <= arriving
            if (feed.handle.gone or is_replaced) and feed.task is not None:
                self._feeds.remove(feed)
                feed.task.cancel()

    # --- one feed -----------------------------------------------------------------------------

    async def _run(self, feed: _Feed) -> None:
        handle = feed.handle
        try:
            await self._read(feed)
        except (LinkBroken, StaleEpoch, OSError) as error:
            logger.info("the feed of %s broke: %s", handle.key, error)
            self._router.broken(handle)
        except CdrsError as error:
            if isinstance(error, InternalError):
                logger.warning("%s failed a feed: %s", handle.key, error)
            self._avoid(feed)
        else:
            self._avoid(feed)
        finally:
            if feed in self._feeds:
                self._feeds.remove(feed)
            self._watch.ring()

    def _avoid(self, feed: _Feed) -> None:
        """The node ended a feed in good order or refused it: leave it alone for a while."""
        _, last = self._avoided.get(feed.handle, (0.0, 0.0))
        pause = FIRST_PAUSE if feed.has_begun or not last else min(2 * last, LONGEST_PAUSE)
        self._avoided = {handle: entry for handle, entry in self._avoided.items() if not handle.gone}
        self._avoided[feed.handle] = (self._clock.monotonic() + pause, pause)

    async def _read(self, feed: _Feed) -> None:
        positions = {partition: self.next[partition] for partition in feed.partitions}
        count = 0
        async with feed.handle.link.feed(self._router.epoch, positions) as batches:
            async for batch in batches:
                feed.heard = self._clock.monotonic()
                pause = self._take(batch)
                if not feed.has_begun:
                    feed.has_begun = True
                    self._end_replaced()
                count += 1
                if pause is not None:
                    await self._hold(feed, pause)
                elif count % BREATH == 0:
                    await asyncio.sleep(0)

    async def _hold(self, feed: _Feed, pause: Pause) -> None:
        feed.is_held = True
        await pause()
        feed.is_held = False
        feed.heard = self._clock.monotonic()

    def _take(self, batch: FeedBatch) -> Pause | None:
        partition = batch.partition
        given = self.next.get(partition)
        if given is None:
            return None
        if batch.start > given:
            raise LinkBroken(f"the feed skipped offsets {given} to {batch.start} of partition {partition}")
        if batch.next <= given:
            return None
        if batch.start < given:
            missing, deleted = (
                [(max(first, given), stop) for first, stop in ranges if stop > given]
                for ranges in (batch.missing, batch.deleted)
            )
            batch = FeedBatch(partition, given, batch.next, _from(batch.records, given), missing, deleted)
        pause = self._sink(batch)
        self.next[partition] = batch.next
        if partition in self._waiters:
            self._wake(partition, batch.next)
        return pause

    def _wake(self, partition: int, reached: int) -> None:
        waiting = self._waiters.pop(partition)
        for offset, waiter in waiting:
            if offset < reached and not waiter.done():
                waiter.set_result(None)
        left = [entry for entry in waiting if entry[0] >= reached]
        if left:
            self._waiters[partition] = left


class _Feed:
    """One open feed."""

    __slots__ = ("handle", "has_begun", "heard", "is_current", "is_held", "partitions", "task")

    def __init__(self, handle: NodeHandle, partitions: set[int], now: float) -> None:
        self.handle = handle
        self.partitions = partitions
        self.heard = now
        """When its last batch came, monotonic."""
        self.has_begun = False
        self.is_current = True
        """It carries exactly what the routes want from this node."""
        self.is_held = False
        """It waits for the sink."""
        self.task: asyncio.Task[None] | None = None


def _from(records: Sequence[Record], offset: int) -> list[Record]:
    return list(records[bisect_left(records, offset, key=lambda record: record.offset) :])
