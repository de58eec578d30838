"""The hub: from the feed to every subscriber.

`Hub.sink` takes batches of visible records in the order in which this gateway merges its partitions. Each frame is
built once per shape and kind of id and put into the views it belongs to (`gateway.publishing`). A sweep then gives each
writable subscriber everything since its cursor as one write, in slices, so that accepts and heartbeats live. What
happens while a sweep runs is joined into the next one: the busier it gets, the fewer writes there are.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gateway.compression import Compression
from gateway.gaps import losses
from gateway.heartbeats import Heartbeats
from gateway.loop_share import LoopShare
from gateway.publishing import Pause, Publisher
from gateway.stalls import StallWatch
from gateway.subscriber import PLAIN, Subscriber
from gateway.view_index import Kind, ViewIndex
from gateway.views import Selection, View
from shared.clock import Clock
from shared.descriptors import room
from shared.position import CursorWriter, Epoch, PartitionCursors, partition_cursors
from shared.records import FeedBatch, Record
from shared.ring import PartitionRing
from shared.settings import SseSettings
from shared.sse import DEFAULT_SHAPE, Shape, bye_block, event_block, stamp_members
from shared.timestamps import rfc3339

if TYPE_CHECKING:
    from shared.telemetry import Telemetry

SLICE = 64
"""Subscribers served before the loop may get a turn."""
WAVES = 20


class Hub:
    """All open subscriptions of one gateway process."""

    def __init__(self, settings: SseSettings, clock: Clock, telemetry: Telemetry) -> None:
        self._settings = settings
        self.heartbeat = settings.heartbeat
        """Seconds without a word after which a stream is told where it stands."""
        self._most = min(settings.max_subscribers, room().streams)
        self._clock = clock
        self._telemetry = telemetry
        self._index = ViewIndex()
        self._compression = Compression(settings, telemetry)
        self._dirty: dict[View, None] = {}
        self._wake = asyncio.Event()
        self._open: dict[Subscriber, None] = {}
        self._share = LoopShare(clock)
        self._farewells = LoopShare(clock)
        self._vector: CursorWriter | None = None
        self._cursors: dict[int, PartitionCursors] = {}
        """`partition_cursors`, without a look at the epoch for each event."""
        self._publisher = Publisher(
            self._index, clock, telemetry, made=self._made, dirty=self._dirty, woken=self._wake.set
        )
        self._heartbeats = Heartbeats(settings.heartbeat, clock, self._publisher, self._open, self.say_bye)
        self.rings: dict[int, PartitionRing] = {}
        """Partition → its latest records; what resuming readers get without asking a node."""
        self.draining = False
        self.stalls = StallWatch(clock, settings.stall_timeout)
        """Connections that take no bytes for the moment."""
        self._group: asyncio.TaskGroup | None = None

    # --- the feed's side --------------------------------------------------------------------------

    def start(self, epoch: Epoch, positions: Mapping[int, int], recent: Mapping[int, FeedBatch] | None = None) -> None:
        """Begin at these offsets; called once, before the first batch. ``recent``: per partition what stands right
        before them, for those who resume from there."""
        self._vector = CursorWriter(epoch, positions)
        self._cursors = {partition: partition_cursors(epoch, partition) for partition in positions}
        self._publisher.start(self._vector)
        recent = recent or {}
        for partition, offset in positions.items():
            before = recent.get(partition)
            start = offset if before is None else before.start
            ring = self.rings[partition] = PartitionRing(
                partition, start, max_records=self._settings.ring_records, max_bytes=self._settings.ring_bytes
            )
            if before is not None:
                ring.extend(before)

    @property
    def started(self) -> bool:
        """Whether the feed's start is known, so that subscriptions can be placed."""
        return self._vector is not None

    @property
    def vector(self) -> CursorWriter:
        """The merged order's present place: per partition the next offset. Read only."""
        assert self._vector is not None
        return self._vector

    @property
    def epoch(self) -> Epoch:
        """The epoch of everything the hub gives."""
        return self.vector.epoch

    def sink(self, batch: FeedBatch) -> Pause | None:
        """Take the next visible records of a partition: what to wait for before the next ones of the same feed."""
        ring = self.rings[batch.partition]
        ring.extend(batch)
        lost = losses(batch)
        if lost:
            ring.forget(lost[-1][2])  # who reads it later is told by history
        return self._publisher.take(batch, lost)

    def _made(self, vector: CursorWriter, record: Record, kind: Kind) -> tuple[bytes, bytes]:
        """An event's frame and cursor for views of one kind."""
        is_vector, shape = kind
        cursor = vector.bytes() if is_vector else self._cursors[record.partition].bytes_at(record.offset + 1)
        return self.frame(record, cursor, shape), cursor

    def frame(self, record: Record, cursor: bytes, shape: Shape) -> bytes:
        """The block of one event for one shape."""
        if shape is DEFAULT_SHAPE:
            return b"".join((b"id: ", cursor, b"\ndata: ", record.value, b"\n\n"))
        stamps = b""
        if shape.stamps:
            stamps = stamp_members(
                record,
                epoch=str(self.epoch),
                accepted=rfc3339(record.accepted_ms),
                appended=rfc3339(record.append_ms),
                dispatched=rfc3339(self._clock.unix_ms()),
            )
        return event_block(record, cursor, shape, stamps=stamps)

    # --- the subscribers' side --------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._open)

    @property
    def full(self) -> bool:
        """Whether newer subscribers must be sent away."""
        return len(self._open) >= self._most

    def is_crowded(self, selection: Selection) -> bool:
        """Whether with one more reader there are enough of them for a compressor."""
        return self._compression.are_enough(self._index.readers(selection) + 1)

    def open(self, subscriber: Subscriber) -> None:
        """Count a subscription in."""
        self._open[subscriber] = None
        if subscriber.gzip is not None:
            self._compression.count_reader(1)
        self._telemetry.connections(len(self._open))
        self._heartbeats.begin(subscriber)

    def close(self, subscriber: Subscriber, reason: str) -> None:
        """Count it out, with the reason for the metric. Idempotent."""
        self.detach(subscriber)  # even if closed before: its history may have placed it again
        if self._open.pop(subscriber, False) is False:
            return
        if subscriber.gzip is not None:
            self._compression.count_reader(-1)
        self._heartbeats.end(subscriber)
        self._telemetry.connections(len(self._open))
        self._telemetry.closed(reason)

    def join(self, subscriber: Subscriber, selection: Selection) -> dict[int, int]:
        """Place a subscriber at the live end of its view and say where that is: per partition the next offset.

        Frames from there on are kept for it (within bounds) while it reads history up to there; then `go_live`.
        """
        self.detach(subscriber)
        view = self._index.get(selection)
        self._publisher.settle(view)
        view.add(subscriber, view.end, self._compression, self._clock.monotonic())
        return dict(self.vector.next)

    def join_at(self, subscriber: Subscriber, view: View, seq: int) -> bool:
        """Place a subscriber somewhere else in a view; False, and in none, where what follows there is gone."""
        self.detach(subscriber)
        if view.first > seq or not self._index.holds(view):
            return False
        view.add(subscriber, seq, self._compression, self._clock.monotonic())
        return True

    def go_live(self, subscriber: Subscriber) -> bool:
        """History has reached the place where it joined. False: that place is gone already, join again."""
        if subscriber.view is None or subscriber.seq < subscriber.view.first:
            self.detach(subscriber)
            return False
        subscriber.live = True
        return True

    def detach(self, subscriber: Subscriber) -> None:
        """Take a subscriber out of its view. Idempotent."""
        view, subscriber.live = subscriber.view, False
        if view is not None:
            view.remove(subscriber)
            if not view.subscribers:
                self._index.discard(view)
                self._publisher.forget(view)
                self._dirty.pop(view, None)

    def service(self, subscriber: Subscriber) -> None:
        """Its writer is ready again: give it what has come since, one write now and the rest with the next sweep."""
        view = subscriber.view
        if view is None or not subscriber.live or not subscriber.ready or subscriber.seq >= view.end:
            return
        if subscriber.seq < view.first:
            self._lose(subscriber)
            return
        now = self._clock.monotonic()
        if view.window is not None:
            view.window.advance(view, now, self._settings.write_bytes)
        joined = view.joined(subscriber.seq, max_bytes=self._settings.write_bytes, form=subscriber.form)
        subscriber.give(joined, now)
        self._telemetry.delivered(joined.events)
        if subscriber.seq < view.end and subscriber.ready:
            self._again(view)

    # --- sweeping ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sweep and keep idle streams alive until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._publisher.run(), name="hub-publish")
            group.create_task(self._sweep_forever(), name="hub-sweep")
            group.create_task(self._heartbeats.run(), name="hub-heartbeats")
            group.create_task(self.stalls.run(), name="hub-stalls")

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task for a while, such as reading history for one subscriber. It ends with the hub and must not fail."""
        assert self._group is not None
        return self._group.create_task(work, name=name)

    async def _sweep_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            dirty = list(self._dirty)
            self._dirty.clear()
            served, delivered, now = 0, 0, self._clock.monotonic()
            for view in dirty:
                served += len(view.subscribers)
                if served > SLICE:  # many views of few are as much as one of many
                    served = len(view.subscribers)
                    await self._share.slice_done()
                    now = self._clock.monotonic()
                if len(view.subscribers) == 1 and (events := self._serve_only_one(view, now)):
                    delivered += events
                else:
                    await self._sweep(view)
            self._telemetry.delivered(delivered)

    def _serve_only_one(self, view: View, now: float) -> int:
        """What a sweep does, for a view with one reader who is where most are: at its end but for what has just come.
        Returns how many events that were; 0 where it is not as simple. Streams for one user each are such views."""
        (subscriber,) = view.subscribers
        if subscriber.seq != view.first or not subscriber.live or not subscriber.ready:
            return 0
        joined = view.taken_by_one(max_bytes=self._settings.write_bytes, form=subscriber.form)
        if joined is None:
            return 0
        subscriber.give(joined, now)
        return joined.events

    async def _sweep(self, view: View) -> None:
        # Who joins meanwhile may stand below: the view itself knows of them.
        low, behind = view.begin_sweep(), False
        everyone = list(view.subscribers)
        for start in range(0, len(everyone), SLICE):
            if start:
                await self._share.slice_done()
            lowest, is_behind = self._sweep_slice(view, everyone[start : start + SLICE])
            low, behind = min(low, lowest), behind or is_behind
        view.trim(low, max_bytes=self._settings.backlog_bytes)
        if behind:
            self._again(view)

    def _sweep_slice(self, view: View, subscribers: Sequence[Subscriber]) -> tuple[int, bool]:
        """One write to each that takes one: where the last of them stands that can go on from there, and whether any
        could take more. The hottest loop there is: a delivery costs what stands here, and the kernel's part."""
        low = end = view.end
        now, delivered, behind = self._clock.monotonic(), 0, False
        at, form, chunk, after, cursor, events = -1, PLAIN, b"", 0, b"", 0
        if view.window is not None:
            view.window.advance(view, now, self._settings.write_bytes)
        first = view.first
        for subscriber in subscribers:
            seq = subscriber.seq
            is_due = seq < end and subscriber.live and subscriber.view is view
            if is_due and (subscriber.socket >= 0 or subscriber.writer.ready):
                if seq != at or subscriber.form != form:
                    if seq < first:
                        self._lose(subscriber)
                        continue
                    at, form = seq, subscriber.form
                    chunk, after, cursor, events = view.joined(at, max_bytes=self._settings.write_bytes, form=form)
                subscriber.seq = seq = after
                subscriber.cursor = cursor
                subscriber.wrote = now
                subscriber.write(chunk)
                delivered += events
                if after < end and subscriber.ready:
                    behind = True
            if seq < low and subscriber.view is view and seq >= first:
                low = seq
        self._telemetry.delivered(delivered)
        return low, behind

    def _again(self, view: View) -> None:
        self._dirty[view] = None
        self._wake.set()

    def _lose(self, subscriber: Subscriber) -> None:
        """The frames it needs are gone from its view."""
        self.detach(subscriber)
        subscriber.writer.lag()

    # --- rotation, drain --------------------------------------------------------------------------

    def jittered_retry(self) -> int:
        """A reconnect delay in milliseconds: half to one and a half of the setting."""
        return int(self._settings.retry * 1000 * random.uniform(0.5, 1.5))

    def say_bye(self, subscriber: Subscriber, reason: str) -> None:
        """Tell why and when to return, and end the stream cleanly."""
        self.close(subscriber, reason)
        subscriber.writer.finish(bye_block(reason, self.jittered_retry()))

    async def drain(self, timeout: float) -> None:
        """End every stream with ``cdrs.bye``, in waves spread over half of ``timeout`` seconds."""
        self.draining = True
        everyone = random.sample(list(self._open), len(self._open))
        time = asyncio.get_running_loop().time
        began = time()
        for wave in range(WAVES):
            await self._say_bye_to(everyone[wave::WAVES])
            if self._open:
                # What the farewells take is part of the wave.
                await asyncio.sleep(max(began + (wave + 1) * timeout / 2 / WAVES - time(), 0))
        await self._say_bye_to(list(self._open))

    async def _say_bye_to(self, subscribers: Sequence[Subscriber]) -> None:
        """In slices: a farewell, and a protocol for the connection, which goes on, are much for one turn."""
        for start in range(0, len(subscribers), SLICE):
            if start:
                await self._farewells.slice_done()
            for subscriber in subscribers[start : start + SLICE]:
                if subscriber in self._open:
                    self.say_bye(subscriber, "drain")
