"""Carrying the log into the store, where the two are not the same thing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial

from cdrs.judgement import Judge, Kind
from cdrs.tail import Tail, origin_of
from cdrs.tasks import Supervisor, Wakeup
from shared.clock import Clock
from shared.errors import Gone, OutcomeUnknown, Unavailable
from shared.ports import EventLog, EventStore
from shared.records import FeedBatch, LogBatch, Record
from shared.settings import PersistSettings

LOOK_INTERVAL = 1.0
"""Between two looks at the checkpoints, in seconds, and the longest a worker sleeps."""
POLL_TIMEOUT = 1.0
IDLE_WAIT = 60.0
REST = 3.0
"""So many times as long as a flush took, nothing is persisted after it: subscribers do not wait for the store, so under
load the processors are theirs first, and larger batches cost less."""
LONGEST_REST = 2.0
"""Bound of the same, in seconds."""

logger = logging.getLogger(__name__)


class Turn:
    """Whether it is this node's turn to persist a partition. Pure.

    The preferred node always does. Any other begins when the checkpoint has stood still for a while with records
    waiting, and leaves off when somebody else moves it. That several do it at once is harmless.
    """

    __slots__ = ("_acting", "_checkpoint", "_since", "_takeover")

    def __init__(self, takeover: float) -> None:
        self._takeover = takeover
        self._checkpoint = -1
        self._since: float | None = None
        self._acting = False

    def decide(self, now: float, *, checkpoint: int, mine: int, end: int, preferred: bool) -> bool:
        """``checkpoint`` as last seen in the store, ``mine`` = where this node brought it itself, ``end`` = what has
        been read of the log; ``now`` in seconds."""
        if checkpoint != self._checkpoint:
            if checkpoint > mine:
                self._acting = False
            self._checkpoint, self._since = checkpoint, None
        if max(checkpoint, mine) >= end:
            self._since = None
        elif self._since is None:
            self._since = now
        elif now - self._since >= self._takeover:
            self._acting = True
        return preferred or self._acting


def pieces(batch: FeedBatch, *, max_records: int, max_bytes: int) -> Iterator[FeedBatch]:
    """Cut a batch so that no piece spans more than ``max_records`` offsets, nor has more bytes of values (the record
    that crosses the bound is still part of it). Nothing is left out between them."""
    start, size = batch.start, 0
    taken: list[Record] = []
    for record in batch.records:
        while record.offset - start >= max_records:
            yield FeedBatch(batch.partition, start, start + max_records, taken)
            start, size, taken = start + max_records, 0, []
        if size >= max_bytes:
            yield FeedBatch(batch.partition, start, record.offset, taken)
            start, size, taken = record.offset, 0, []
        taken.append(record)
        size += len(record.value)
    while batch.next - start > max_records:
        yield FeedBatch(batch.partition, start, start + max_records, taken)
        start, taken = start + max_records, []
    if batch.next > start:
        yield FeedBatch(batch.partition, start, batch.next, taken)


class Replay:
    """Reads a partition again from an offset that no ring covers any more, and judges it again: W earlier on, so that
    the judgement from there on is the one that everybody made."""

    def __init__(self, log: EventLog, partition: int, start: int, *, window: int, log_start: int) -> None:
        self.next = start
        """First offset not yet given."""
        self._partition = partition
        begin = start if log.decides_identity else max(start - window, log_start)
        is_whole = begin == origin_of(log, partition)
        self._judge = None if log.decides_identity else Judge(window, start=begin, whole=is_whole)
        self._tail = log.tail({partition: begin})

    async def read(self, *, max_records: int) -> FeedBatch | None:
        """What follows; None where there was nothing new within a second."""
        start = self.next
        visible: list[Record] = []
        for batch in await self._tail.poll(max_records=max_records, timeout=POLL_TIMEOUT):
            visible += [record for record in self._visible(batch) if record.offset >= start]
            self.next = max(self.next, batch.next)
        return FeedBatch(self._partition, start, self.next, visible) if self.next > start else None

    async def close(self) -> None:
        """Stop reading."""
        await self._tail.close()

    def _visible(self, batch: LogBatch) -> list[Record]:
        if self._judge is None:
            return batch.records
        verdicts = self._judge.judge(batch.records, upto=batch.next)
        return [record for record, verdict in zip(batch.records, verdicts, strict=True) if verdict.kind is Kind.VISIBLE]


def together(batches: Sequence[FeedBatch], *, max_records: int, max_bytes: int) -> Iterator[list[FeedBatch]]:
    """Batches of different partitions as the groups that are written at once: no group beyond these bounds, unless it
    is a single batch."""
    group: list[FeedBatch] = []
    span = size = 0
    for batch in batches:
        more = sum(len(record.value) for record in batch.records)
        if group and (span + batch.next - batch.start > max_records or size + more > max_bytes):
            yield group
            group, span, size = [], 0, 0
        group.append(batch)
        span += batch.next - batch.start
        size += more
    if group:
        yield group


class Persister:
    """Persists the partitions that a tail follows, all that waits in one go.

    Takes records from the tail's rings; what they hold no more is read again from the log. Where the store is away it
    tries again for ever, and `lag` grows.
    """

    def __init__(
        self,
        log: EventLog,
        store: EventStore,
        tail: Tail,
        settings: PersistSettings,
        clock: Clock,
        *,
        window: int,
        preferred: Callable[[int], bool] = lambda _: True,
        supervisor: Supervisor | None = None,
    ) -> None:
        """``preferred`` tells whether this node comes first in the ranking for a partition; it is asked each time."""
        self._log = log
        self._store = store
        self._tail = tail
        self._settings = settings
        self._clock = clock
        self._window = window
        self._preferred = preferred
        self._supervisor = supervisor or Supervisor(clock)
        self._seen: dict[int, int] = {}
        self._mine: dict[int, int] = {}
        self._turns = {partition: Turn(settings.takeover) for partition in range(log.partitions)}
        self._slots = asyncio.Semaphore(settings.parallel)
        self._wakeup = Wakeup()
        self._lost = {partition: Wakeup() for partition in range(log.partitions)}
        """Set where a ring holds no more what is to be persisted."""
        self._flush_at: float | None = None
        """When everything that waits is written; None while nothing waits."""
        self._rested = float("-inf")
        """When the pause after the last flush is over."""
        self._is_careful = False
        """Whether the last flush failed: then each partition is written alone, so that none suffers for another."""

    @property
    def lag(self) -> Mapping[int, int]:
        """Per partition how many records were read of the log that the store lacks, as far as this node knows. Empty
        until both were reached."""
        if not self._seen:
            return {}
        return {partition: max(self._end(partition) - self._from(partition), 0) for partition in self._tail.rings}

    @property
    def trouble(self) -> str:
        """Which partitions take no events because the store is too far behind; empty when none."""
        refused = [partition for partition in self._tail.rings if self.refuses(partition)]
        if not refused:
            return ""
        names = ", ".join(map(str, refused))
        return f"the store is more than {self._settings.max_lag} records behind; refusing events of partitions {names}"

    def refuses(self, partition: int) -> bool:
        """Whether the store is so far behind that the node must take no more events for this partition."""
        ring = self._tail.rings.get(partition)
        return ring is not None and bool(self._seen) and ring.next - self._from(partition) > self._settings.max_lag

    async def run(self) -> None:
        """Persist until cancelled."""
        self._tail.watch(self._wakeup)
        supervise = self._supervisor.run
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(supervise("persist: checkpoints", self._look))
                group.create_task(supervise("persist", self._flushes))
                for partition in range(self._log.partitions):
                    replays = partial(self._replays, partition)
                    group.create_task(supervise(f"persist: replay of partition {partition}", replays))
        finally:
            self._tail.unwatch(self._wakeup)

    async def _look(self) -> None:
        while True:
            self._seen = dict(await self._store.checkpoints())
            self._wakeup.set()
            await asyncio.sleep(LOOK_INTERVAL)

    # --- whose turn it is

    def _due(self) -> list[int]:
        """The partitions of which this node has something to persist, in its rings."""
        due: list[int] = []
        for partition, ring in self._tail.rings.items() if self._seen else ():
            if self._is_due(partition):
                if ring.covers(self._from(partition)):
                    due.append(partition)
                else:
                    self._lost[partition].set()
        return due

    def _is_due(self, partition: int) -> bool:
        end = self._end(partition)
        is_mine = self._turns[partition].decide(
            self._clock.monotonic(),
            checkpoint=self._seen.get(partition, 0),
            mine=self._mine.get(partition, 0),
            end=end,
            preferred=self._preferred(partition),
        )
        return is_mine and self._from(partition) < end

    def _end(self, partition: int) -> int:
        return self._tail.rings[partition].next

    def _from(self, partition: int) -> int:
        return max(self._seen.get(partition, 0), self._mine.get(partition, 0))

    # --- out of the rings

    async def _flushes(self) -> None:
        clock = self._clock
        while True:
            if not self._due():
                await self._wakeup.wait(LOOK_INTERVAL)
                continue
            if self._flush_at is None:
                self._flush_at = max(clock.monotonic() + self._settings.linger, self._rested)
            if pressed := await self._linger(self._flush_at):
                await self._flush(pressed)
                continue
            started, self._flush_at = clock.monotonic(), None
            await self._flush(self._due())
            ended = clock.monotonic()
            self._rested = ended + min(REST * (ended - started), LONGEST_REST)

    async def _linger(self, until: float) -> list[int]:
        """Let more come, and leave the processors to others. Ends early with the partitions whose rings would lose what
        waits."""
        while (left := until - self._clock.monotonic()) > 0:
            if pressed := self._pressed():
                return pressed
            await self._wakeup.wait(left)
        return []

    def _pressed(self) -> list[int]:
        return [
            partition
            for partition, ring in self._tail.rings.items()
            if ring.covers(at := self._from(partition)) and ring.is_pressed(at) and self._is_due(partition)
        ]

    async def _flush(self, due: Sequence[int]) -> None:
        """Everything that is waiting now."""
        most, most_bytes = self._settings.batch_records, self._settings.batch_bytes
        ends = {partition: self._end(partition) for partition in due}
        while taken := [batch for partition, end in ends.items() if (batch := self._next(partition, end)) is not None]:
            if self._is_careful:
                groups = [[batch] for batch in taken]
            else:
                groups = list(together(taken, max_records=most, max_bytes=most_bytes))
            outcomes = await asyncio.gather(*[self._persist(group) for group in groups], return_exceptions=True)
            errors = [outcome for outcome in outcomes if outcome is not None]
            self._is_careful = bool(errors)
            if errors:
                raise errors[0]

    def _next(self, partition: int, end: int) -> FeedBatch | None:
        ring, at = self._tail.rings[partition], self._from(partition)
        if at >= end or not ring.covers(at):
            return None
        most = self._settings.batch_records
        records, reached = ring.read(at, min(at + most, end), limit=most, max_bytes=self._settings.batch_bytes)
        return FeedBatch(partition, at, reached, records)

    async def _persist(self, batches: Sequence[FeedBatch]) -> None:
        async with self._slots:
            try:
                await self._store.persist(*batches)
            except OutcomeUnknown as error:
                # Persisting is idempotent: to be told that it may have happened is as good as that it has not.
                raise Unavailable(error.detail) from error
        for batch in batches:
            self._mine[batch.partition] = max(self._mine.get(batch.partition, 0), batch.next)

    # --- out of the log

    async def _replays(self, partition: int) -> None:
        while True:
            ring = self._tail.rings.get(partition)
            if ring is not None and self._seen and self._is_due(partition) and not ring.covers(self._from(partition)):
                await self._replay(partition)
                self._wakeup.set()
            await self._lost[partition].wait(IDLE_WAIT)

    async def _replay(self, partition: int) -> None:
        most, most_bytes = self._settings.batch_records, self._settings.batch_bytes
        log_start = (await self._log.starts()).get(partition, 0)
        if log_start > max(self._from(partition) - self._window, origin_of(self._log, partition)):
            # Too little is left to judge by. Mostly somebody has stored it and W more: only then a log is trimmed.
            self._seen = dict(await self._store.checkpoints())
        if log_start > self._from(partition):
            await self._give_up(partition, log_start)
        start = self._from(partition)
        logger.info("partition %d: reading the log again from %d, the store lacks it", partition, start)
        async with AsyncExitStack() as stack:
            stack.enter_context(suppress(Gone))  # deleted meanwhile: seen when it is begun again
            replay = Replay(self._log, partition, start, window=self._window, log_start=log_start)
            stack.push_async_callback(replay.close)
            while not self._tail.rings[partition].covers(self._from(partition)):
                batch = await replay.read(max_records=most)
                if batch is None or batch.next <= self._from(partition):
                    continue
                for piece in pieces(batch, max_records=most, max_bytes=most_bytes):
                    await self._persist([piece])

    async def _give_up(self, partition: int, log_start: int) -> None:
        """Neither the log nor the rings have it any more: readers are told."""
        start = self._from(partition)
        logger.critical("partition %d: the log has deleted %d to %d unstored", partition, start, log_start)
        try:
            await self._store.give_up(partition, start, log_start)
        except OutcomeUnknown as error:
            raise Unavailable(error.detail) from error
        self._mine[partition] = max(self._mine.get(partition, 0), log_start)
