"""The node's own reader of the log: judges what it reads, settles receipts, fills the rings, wakes the feeds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from cdrs.judgement import Judge, Kind, Verdict
from cdrs.tasks import Wakeup
from shared.errors import Gone, Unavailable
from shared.offers import DatedLog, SuccessorLog
from shared.ports import EventLog, EventStore
from shared.records import FeedBatch, LogBatch, PageQuery, Record
from shared.ring import PartitionRing
from shared.settings import NodeSettings

POLL_RECORDS = 2048
"""Most records judged between two looks at the event loop."""
POLL_TIMEOUT = 1.0

STORED_WITHIN = 3.0
STORED_POLL = 0.05
"""How long, in seconds, to wait for the store to have what was read, and between two looks."""

SURE_AFTER = 3
"""Looks in a row at a log that is too short before it is believed."""

logger = logging.getLogger(__name__)

Observer = Callable[[int, Sequence[Record], Sequence[Verdict] | None], None]
"""Told of everything read: partition, records, and their verdicts (None: the log decides, all are visible)."""


def origin_of(log: EventLog, partition: int) -> int:
    """Where a partition began, in this incarnation of its log."""
    return log.origins.get(partition, 0) if isinstance(log, SuccessorLog) else 0


def _are_same(one: Record, other: Record) -> bool:
    return (one.offset, one.identity, one.append_ms) == (other.offset, other.identity, other.append_ms)


class Tail:
    """Follows all partitions of the log from its end on.

    A log that does not decide identity is entered W records before the checkpoint, so that judgement is exact from the
    checkpoint on and the index covers what the store does not. Whatever is read is judged once, even if the reading
    fails in between and starts again.
    """

    def __init__(self, log: EventLog, store: EventStore, settings: NodeSettings, observe: Observer) -> None:
        self._log = log
        self._store = store
        self._settings = settings
        self._observe = observe
        self._watchers: set[Wakeup] = set()
        self._targets: dict[int, int] = {}
        self.rings: dict[int, PartitionRing] = {}
        """Partition → its latest visible records. Empty until the log was reached for the first time."""
        self.judges: dict[int, Judge] = {}
        """Partition → its judge. Empty for logs that decide identity."""
        self.begins: Mapping[int, int] = {}
        """Partition → where judgement by this tail begins; what is below is in the store."""
        self.hidden: dict[int, set[int]] = {}
        """Partition → offsets from there on that were judged not to be visible and may not be in the store yet: with it
        the log can be read again without being judged again."""
        self.broken: dict[int, str] = {}
        """Partition → why it is not served: the log is not the one that was read and stored, or does not seem to be."""
        self._must_begin = False
        """What was read is of no use any more, as the log begins behind it."""
        self.known_ends: dict[int, int] = {}
        """Partition that is broken → the end that it had."""
        self._firsts: dict[int, tuple[int, int]] = {}
        """Partition → offset and stamp of the first record that the log keeps."""
        self._short: dict[int, int] = {}
        """Partition → how often in a row the log ended before what is known of it."""
        self._doubted: set[int] = set()
        """Partitions that are broken because the log was too short, and may turn out to be what they were: a new leader
        of Kafka may take many seconds until it shows the last records again."""
        self._resumed: set[int] = set()
        """Partitions that turned out so, and must be read on."""
        self._last: dict[int, Record] = {}
        """Partition → the last record that was read."""
        self.caught_up = asyncio.Event()
        """Set once everything that the log held when the tail began has been read."""
        self.lag: Mapping[int, int] = {}
        """Per partition how many records the log holds beyond what was read, as of the last `measure`."""

    @property
    def ready(self) -> bool:
        """Whether `caught_up` is set."""
        return self.caught_up.is_set()

    def watch(self, wakeup: Wakeup) -> None:
        """Set this signal whenever something was read."""
        self._watchers.add(wakeup)

    def unwatch(self, wakeup: Wakeup) -> None:
        """The inverse of `watch`."""
        self._watchers.discard(wakeup)

    def position(self, partition: int) -> int:
        """First offset of the partition not yet read."""
        judge = self.judges.get(partition)
        return judge.next if judge is not None else self.rings[partition].next

    async def run(self) -> None:
        """Read until it fails or is cancelled; calling it again goes on where it stopped."""
        if not self.rings or self._must_begin:
            await self._begin()
            self._must_begin = False
        positions = {partition: self.position(partition) for partition in self.rings if partition not in self.broken}
        tail = self._log.tail(positions)
        try:
            while True:
                self._take_all(await tail.poll(max_records=POLL_RECORDS, timeout=POLL_TIMEOUT))
                while self._resumed:
                    partition = self._resumed.pop()
                    tail.seek(partition, self.position(partition))
                    del self.broken[partition]
        except Gone as error:
            await self._deleted(int(error.members["partition"]), int(error.members["start"]))
        finally:
            await tail.close()

    async def _deleted(self, partition: int, start: int) -> None:
        """The log begins behind what was read of it: reading begins anew, where the log and the store have something.
        What neither of them has is told by the store, once the persister has given it up."""
        logger.warning("partition %d: the log was cut up to %d; beginning anew", partition, start)
        with suppress(TimeoutError):
            async with asyncio.timeout(STORED_WITHIN):  # what only the rings have is not given up
                while (await self._store.checkpoints()).get(partition, 0) < self.position(partition):  # noqa: ASYNC110
                    await asyncio.sleep(STORED_POLL)
        self._must_begin = True

    def _break(self, partition: int, why: str) -> None:
        if partition not in self.broken:
            logger.critical("partition %d is not served any more: %s", partition, why)
            self.broken[partition] = f"partition {partition}: {why}; the log needs a new epoch"

    def _look_at_ends(self, ends: Mapping[int, int], known: Mapping[int, int]) -> bool:
        """Whether no partition ends before what is known of it. One that does so again and again is broken: it was
        deleted and made anew, or restored from something older."""
        fine = True
        for partition, end in ends.items():
            if partition not in known:
                continue
            if end >= known[partition]:
                self._short.pop(partition, None)
                continue
            fine = False
            self._short[partition] = self._short.get(partition, 0) + 1
            if self._short[partition] >= SURE_AFTER and partition not in self.broken:
                self.known_ends[partition] = known[partition]
                self._doubted.add(partition)
                self._break(partition, f"the log ends at {end}, but {known[partition]} offsets were there")
        return fine or all(partition in self.broken for partition in self._short)

    async def _look_again(self, ends: Mapping[int, int]) -> None:
        """A log that was too short and has its records again is served again; one that has others there is not."""
        for partition in [p for p in self._doubted if ends.get(p, 0) >= self.known_ends[p]]:
            known = await self._last_known(partition)
            if known is None:
                continue
            try:
                found = await self._read_one(partition, known.offset)
            except Gone:
                continue
            if found is None:
                continue
            self._doubted.discard(partition)
            if _are_same(known, found):
                logger.warning("partition %d: the log has again what was read of it", partition)
                del self.known_ends[partition]
                self._resumed.add(partition)

    async def _last_known(self, partition: int) -> Record | None:
        """The last record of a partition that was read, or stored."""
        if partition in self._last:
            return self._last[partition]
        end = self.known_ends[partition]
        page = await self._store.page(PageQuery(partition, max(end - POLL_RECORDS, 0), end, 1, 1, backwards=True))
        return page.records[0] if page.records else None

    async def _read_one(self, partition: int, offset: int) -> Record | None:
        tail = self._log.tail({partition: offset})
        try:
            batches = await tail.poll(max_records=1, timeout=POLL_TIMEOUT)
        finally:
            await tail.close()
        return next((record for batch in batches for record in batch.records), None)

    async def _look_at_firsts(self, log: DatedLog) -> None:
        """A log that was deleted and made anew has other first records, however long it is by now."""
        for partition, (offset, stamp) in (await log.firsts()).items():
            known = self._firsts.get(partition)
            if known is None or offset > known[0]:
                self._firsts[partition] = offset, stamp
            elif offset == known[0]:
                if stamp != known[1]:
                    self._made_anew(partition)
            elif stamp > known[1] and await self._lacks_last(partition):
                # Older records are no proof, and later stamps on them hardly one: brokers that fall over may show again
                # what was deleted of a log, and their clocks differ.
                self._made_anew(partition)

    async def _lacks_last(self, partition: int) -> bool:
        """Whether the log has another record where the last one was that was read; False where that cannot be told."""
        last = self._last.get(partition)
        if last is None:
            return True
        try:
            found = await self._read_one(partition, last.offset)
        except Gone:
            return True
        return found is not None and not _are_same(last, found)

    async def _compare_with_store(self, log: DatedLog, checkpoints: Mapping[int, int]) -> None:
        """The same, by what the store has of them: at the start, nothing else is known."""
        self._firsts = dict(await log.firsts())
        for partition, (offset, stamp) in self._firsts.items():
            if offset >= checkpoints.get(partition, 0):
                continue
            page = await self._store.page(PageQuery(partition, offset, offset + 1, 1, 1))
            if page.records and stamp > page.records[0].append_ms:
                self.known_ends[partition] = checkpoints[partition]
                self._made_anew(partition)

    def _made_anew(self, partition: int) -> None:
        self._doubted.discard(partition)
        self._resumed.discard(partition)
        if partition in self.rings:
            self.known_ends.setdefault(partition, self.position(partition))
        self._break(partition, "its first record is not the one that it was: the log was deleted and made anew")

    async def measure(self) -> None:
        """Compare with the log's own ends."""
        # Before the log is asked: what is read while it answers is not too much.
        known = {partition: self.position(partition) for partition in self.rings}
        ends = await self._log.ends()
        self._look_at_ends(ends, known)
        if isinstance(self._log, DatedLog):
            await self._look_at_firsts(self._log)
        self.lag = {partition: max(ends[partition] - self.position(partition), 0) for partition in self.rings}
        await self._look_again(ends)
        if self.judges:
            try:
                checkpoints = await self._store.checkpoints()
            except Unavailable:
                return  # then the index forgets nothing, which is what is needed
            for partition, judge in self.judges.items():
                self._forget(partition, judge, checkpoints.get(partition, 0))

    def _forget(self, partition: int, judge: Judge, checkpoint: int) -> None:
        judge.forget(checkpoint)
        # The store may be some questions behind when the log is read again in its stead.
        floor = checkpoint - self._settings.window
        hidden = self.hidden[partition]
        hidden.difference_update([offset for offset in hidden if offset < floor])
        if floor > self.begins[partition]:
            self.begins = {**self.begins, partition: floor}

    async def _begin(self) -> None:
        log, window = self._log, self._settings.window
        # Before the ends: another node may put more into the store meanwhile.
        checkpoints: Mapping[int, int] = {}
        if not log.decides_identity:
            checkpoints = await self._store.checkpoints()
        ends = await log.ends()
        begin = dict(ends)
        if not log.decides_identity:
            starts = await log.starts()
            if not self._look_at_ends(ends, checkpoints):
                raise Unavailable("the log ends before what the store has of it; looking again", retry_after=1.0)
            if isinstance(log, DatedLog):
                await self._compare_with_store(log, checkpoints)
            begin = {p: max(min(checkpoints.get(p, 0), end), starts[p]) for p, end in ends.items()}
            for partition, offset in begin.items():
                start = max(offset - window, starts[partition])
                self.judges[partition] = Judge(window, start=start, whole=start == origin_of(log, partition))
        self._targets = dict(ends)
        self.begins = dict(begin)
        self.hidden = {partition: set() for partition in begin}
        self.rings = {
            partition: PartitionRing(
                partition,
                offset,
                max_records=self._settings.ring_records,
                max_bytes=self._settings.ring_bytes,
            )
            for partition, offset in begin.items()
        }
        self._check_ready()

    def _check_ready(self) -> None:
        if all(p in self.broken or self.position(p) >= end for p, end in self._targets.items()):
            self.caught_up.set()

    def _take_all(self, batches: Sequence[LogBatch]) -> None:
        for batch in batches:
            if batch.partition not in self.broken:
                self._take(batch)
        if not self.ready:
            self._check_ready()
        if batches:
            for wakeup in self._watchers:
                wakeup.set()

    def _take(self, batch: LogBatch) -> None:
        if batch.records:
            self._last[batch.partition] = batch.records[-1]
        ring = self.rings[batch.partition]
        judge = self.judges.get(batch.partition)
        if judge is None:
            ring.extend(FeedBatch(batch.partition, batch.start, batch.next, batch.records))
            self._observe(batch.partition, batch.records, None)
            return
        if batch.start != judge.next:
            raise ValueError(f"partition {batch.partition}: {batch.start} does not follow {judge.next}")
        verdicts = judge.judge(batch.records, upto=batch.next)
        unseen = [
            record.offset
            for record, verdict in zip(batch.records, verdicts, strict=True)
            if verdict.kind is not Kind.VISIBLE
        ]
        visible = batch.records
        if unseen:
            begin = self.begins[batch.partition]
            self.hidden[batch.partition].update(offset for offset in unseen if offset >= begin)
            away = frozenset(unseen)
            visible = [record for record in visible if record.offset not in away]
        if batch.start < ring.next:
            visible = [record for record in visible if record.offset >= ring.next]
        if batch.next > ring.next:
            ring.extend(FeedBatch(batch.partition, ring.next, batch.next, visible))
        self._observe(batch.partition, batch.records, verdicts)
