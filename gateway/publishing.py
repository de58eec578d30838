"""From the feed into the views, a bounded piece of work at a time.

A frame is built once per shape and kind of id and given to every view it belongs to. Consecutive records of one stream
are a *run*, which each view is given at once: a burst costs a view once, not once for each event. Where the views of a
run are too many for one turn of the event loop, those that are left are *owed* it. To everybody else the run has
happened: the vector stands behind it, so whoever joins a view or is told its place must find it settled (`settle`), or
not be told (`owes`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from gateway.gaps import Loss, loss
from gateway.loop_share import LoopShare
from gateway.view_index import Bucket, Kind, ViewIndex, candidates_of, kind_of, passes, plain_of
from gateway.views import Selection, View
from shared.clock import Clock
from shared.events import attributes_of
from shared.position import CursorWriter
from shared.records import FeedBatch, Record
from shared.telemetry import Telemetry

STEPS = 1024
"""Work for one turn of the event loop: frames built, and views given something (`_Run.steps`). One or two
milliseconds; a whole batch of the feed for one view is within."""
RUN = 64
"""Records of a run at most: building their frames is not interrupted."""

Pause = Callable[[], Awaitable[None]]
"""What to wait for before the next batch."""
Losses = Sequence[tuple[Loss, int, int]]
"""`gateway.gaps.losses` of a batch."""


class _Run:
    """Frames of consecutive events, for the views of one kind that get all of them."""

    __slots__ = ("cursors", "frames", "size")

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.cursors: list[bytes] = []
        self.size = 0
        """Bytes of the frames."""

    def add(self, frame: bytes, cursor: bytes) -> None:
        """One more."""
        self.frames.append(frame)
        self.cursors.append(cursor)
        self.size += len(frame)

    @property
    def steps(self) -> int:
        """What giving it to a view counts for: frames cost little once a view is at hand."""
        return 1 + len(self.frames) // 32


class _Question:
    """One event, for views whose filters have to be asked. Its frames are built when one lets it through."""

    __slots__ = ("attributes", "made", "record")

    def __init__(self, record: Record, attributes: Mapping[str, object], made: dict[Kind, tuple[bytes, bytes]]) -> None:
        self.record = record
        self.attributes = attributes
        self.made = made
        """Frames and cursors so far."""


class _Job:
    """A batch of which not everything has been published."""

    __slots__ = ("at", "batch", "untold")

    def __init__(self, batch: FeedBatch, at: int, untold: Losses) -> None:
        self.batch = batch
        self.at = at
        """Index of the record that is next."""
        self.untold = untold
        """What it lacks, until that is told."""


class Publisher:
    """Puts batches into views in the order in which they come."""

    def __init__(
        self,
        index: ViewIndex,
        clock: Clock,
        telemetry: Telemetry,
        *,
        made: Callable[[CursorWriter, Record, Kind], tuple[bytes, bytes]],
        dirty: dict[View, None],
        woken: Callable[[], None],
    ) -> None:
        """``made`` builds an event's frame and cursor for views of one kind, by the vector that stands right behind it.
        ``dirty`` gets the views that were given something; ``woken`` is called when there are some."""
        self._index = index
        self._clock = clock
        self._telemetry = telemetry
        self._made = made
        self._dirty = dirty
        self._woken = woken
        self._vector: CursorWriter
        self._left = 0
        """Steps that may still be made in this turn."""
        self._spent = 0
        """Steps since a feed last waited."""
        self._jobs: deque[_Job] = deque()
        """At most one for each feed, as a feed waits until they are done."""
        self._owed: dict[View, _Run | _Question] = {}
        """Of the run under way: the views that have not been given it yet."""
        self._more = asyncio.Event()
        self._done = asyncio.Event()

    def start(self, vector: CursorWriter) -> None:
        """``vector`` is the merged order's place before the first batch, and from then on."""
        self._vector = vector

    # --- batches ----------------------------------------------------------------------------------

    def take(self, batch: FeedBatch, lost: Losses) -> Pause | None:
        """Publish a batch, now or as the loop has time for it, and tell what it lacks: what to wait for before there
        may be another one."""
        if self._jobs:
            self._jobs.append(_Job(batch, 0, lost))
            return self.caught_up
        self._left = STEPS
        self._tell_missing(batch.partition, lost)
        at = self._publish(batch.records, 0)
        self._spent += STEPS - self._left
        if self._dirty:
            self._woken()
        if at < len(batch.records) or self._owed:
            self._jobs.append(_Job(batch, at, ()))
            self._done.clear()
            self._more.set()
            return self.caught_up
        self._finish(batch)
        return self.caught_up if self._spent >= STEPS else None

    async def caught_up(self) -> None:
        """Wait until all batches are published, and for a turn of the loop at least."""
        await asyncio.sleep(0)
        self._spent = 0
        while self._jobs:
            await self._done.wait()

    async def run(self) -> None:
        """Publish what was too much for one turn, until cancelled."""
        share = LoopShare(self._clock)
        while True:
            await self._more.wait()
            self._more.clear()
            while self._jobs:
                self._slice()
                if self._dirty:
                    self._woken()
                if self._jobs:
                    await share.slice_done()
            self._done.set()

    def _slice(self) -> None:
        self._left = STEPS
        self._give()
        while self._jobs and self._left > 0:
            job = self._jobs[0]
            untold, job.untold = job.untold, ()
            self._tell_missing(job.batch.partition, untold)
            job.at = self._publish(job.batch.records, job.at)
            if job.at < len(job.batch.records) or self._owed:
                return
            self._finish(self._jobs.popleft().batch)

    def _finish(self, batch: FeedBatch) -> None:
        if self._vector.next[batch.partition] != batch.next:
            self._vector.advance(batch.partition, batch.next)
        if batch.records:
            now = self._clock.unix_ms()
            last = batch.records[-1]
            self._telemetry.latency("append", (last.append_ms - last.accepted_ms) / 1000)
            self._telemetry.latency("dispatch", (now - last.append_ms) / 1000)

    def _tell_missing(self, partition: int, lost: Losses) -> None:
        """History has not got what this gateway, far behind, had to read of it. Whoever reads that range is told."""
        for reason, first, stop in lost:
            block = loss(self._vector.epoch, reason, partition, first, stop).block()
            for view in self._index.reading(partition):
                view.append(block, self.cursor_now(view.selection))
                self._dirty[view] = None
                self._telemetry.gap(reason, len(view.subscribers))

    # --- runs -------------------------------------------------------------------------------------

    def _publish(self, records: Sequence[Record], at: int) -> int:
        """Publish records from an index on until the steps of this turn are used up: the index reached. Some views may
        be owed the last run."""
        if not len(self._index):
            return len(records)
        count, buckets_of = len(records), self._index.buckets
        while at < count and self._left > 0:
            record = records[at]
            at += 1
            stream = record.stream
            buckets = buckets_of(stream)
            if not buckets:
                continue
            is_alone = at == count or records[at].stream != stream
            if is_alone and len(buckets) == 1 and buckets[0].filtered is None:
                self._publish_one(record, buckets[0].plain)
            else:
                at = self._publish_run(records, at - 1, buckets)
        return at

    def _publish_one(self, record: Record, plain: Mapping[Kind, Collection[View]]) -> None:
        """What most events are that come one by one: a run of its own, for views without filters."""
        vector, dirty = self._vector, self._dirty
        vector.advance(record.partition, record.offset + 1)
        for kind, views in plain.items():
            frame, cursor = self._made(vector, record, kind)
            left = self._left = self._left - 1
            if len(views) > left:
                run = _Run()
                run.add(frame, cursor)
                self._owed.update(dict.fromkeys(views, run))
                continue
            self._left = left - len(views)
            for view in views:
                view.append(frame, cursor)
                dirty[view] = None
        if self._owed:
            self._give()

    def _publish_run(self, records: Sequence[Record], at: int, buckets: Sequence[Bucket]) -> int:
        """Publish the run that begins there: the index behind it."""
        vector, plain = self._vector, plain_of(buckets)
        runs = [(kind, _Run()) for kind in plain]
        has_filters = any(bucket.filtered is not None for bucket in buckets)
        stream, most = records[at].stream, min(at + RUN, len(records))
        while at < most and (record := records[at]).stream == stream:
            at += 1
            vector.advance(record.partition, record.offset + 1)
            for kind, run in runs:
                run.add(*self._made(vector, record, kind))
            self._left -= len(runs)
            if has_filters:
                self._ask(record, buckets)
                if self._left <= 0:
                    break  # some have not been asked yet, and the next event must not come before this one
        for kind, run in runs:
            self._hand_out(run, plain[kind])
        self._give()
        return at

    def _ask(self, record: Record, buckets: Sequence[Bucket]) -> None:
        """Give an event to the views whose filters let it through. When the steps are used up, the answers of the
        others are owed."""
        attributes, left = attributes_of(record), self._left
        made: dict[Kind, tuple[bytes, bytes]] = {}
        question: _Question | None = None
        for view in candidates_of(attributes, buckets):
            left -= 1
            if left < 0:
                question = question or _Question(record, attributes, made)
                self._owed[view] = question
            elif passes(view, attributes):
                self._give_event(view, record, made)
        self._left = left

    def _hand_out(self, run: _Run, views: Collection[View]) -> None:
        steps = run.steps * len(views)
        if steps > self._left:
            self._owed.update(dict.fromkeys(views, run))
            return
        frames, cursors, size, dirty = run.frames, run.cursors, run.size, self._dirty
        self._left -= steps
        for view in views:
            view.extend(frames, cursors, size)
            dirty[view] = None

    def _give(self) -> None:
        """Give the run under way to more of those who are owed it."""
        owed = self._owed
        while owed and self._left > 0:
            self._give_one(*owed.popitem())

    def _give_one(self, view: View, what: _Run | _Question) -> None:
        if isinstance(what, _Run):
            self._left -= what.steps
            view.extend(what.frames, what.cursors, what.size)
            self._dirty[view] = None
            return
        self._left -= 1
        if passes(view, what.attributes):
            self._give_event(view, what.record, what.made)

    def _give_event(self, view: View, record: Record, made: dict[Kind, tuple[bytes, bytes]]) -> None:
        """``made``: its frames and cursors so far."""
        kind = kind_of(view)
        frame = made.get(kind)
        if frame is None:
            frame = made[kind] = self._made(self._vector, record, kind)
        view.append(*frame)
        self._dirty[view] = None

    # --- whoever looks at a view while a run is under way -----------------------------------------

    def settle(self, view: View) -> None:
        """Give a view what it is owed: its end is where the vector stands."""
        what = self._owed.pop(view, None)
        if what is not None:
            self._give_one(view, what)
            self._woken()

    def owes(self, view: View) -> bool:
        """Whether the vector stands beyond a view's end."""
        return view in self._owed

    def forget(self, view: View) -> None:
        """Nobody reads it any more."""
        self._owed.pop(view, None)

    def cursor_now(self, selection: Selection) -> bytes:
        """The cursor of someone who has been given everything up to now."""
        if selection.vector:
            return self._vector.bytes()
        (partition,) = selection.partitions
        return CursorWriter(self._vector.epoch, {partition: self._vector.next[partition]}).bytes()
