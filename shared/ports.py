"""The ports: what the product needs from the world, as guarantees. Adapters live in `shared.backends`.

Words: an *offset* is the place of a record in its partition. *Next* always means the first offset not yet covered.
Every method that waits is bounded: by its own ``timeout`` argument or by the adapter's deadline (settings); running
out raises `shared.errors.Unavailable` where nothing was stored, `shared.errors.OutcomeUnknown` where it may have been.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

import msgspec

from shared.position import Epoch
from shared.records import (
    Duplicate,
    Entry,
    FeedBatch,
    ForeignRecord,
    HistoryPage,
    LogBatch,
    NewEvent,
    NodeInfo,
    PageQuery,
    Record,
    Settlement,
    StreamInfo,
)


class EventLog(Protocol):
    """The partitioned, append-only log: the one authority on which events exist and in which order."""

    @property
    def epoch(self) -> Epoch:
        """The incarnation of this log. Constant while it is open."""
        ...

    @property
    def partitions(self) -> int:
        """How many partitions this epoch has; they are numbered from 0."""
        ...

    @property
    def decides_identity(self) -> bool:
        """True: an append itself refuses an identity that the log holds, so no record is ever void or a duplicate.
        False: the appender must look identities up first, and readers judge records (`cdrs.judgement`)."""
        ...

    async def append(self, partition: int, events: Sequence[NewEvent], *, base: int) -> Sequence[Entry]:
        """Append events to a partition, in order, all or none.

        Returns one entry for each event: an offset or None = it is in the log, durable as the profile promises, and
        every tail will read it; a `Duplicate` = its identity was there before (in the log, or earlier in this very
        call) and nothing was written for it. Logs that do not decide identity return no `Duplicate`, and an offset only
        for what they have written once: only then can its appender tell its own record from a copy.
        ``base`` is the offset the caller's tail had reached when it looked the identities up.

        Raises `Unavailable`: none of them is or will be in the log. `OutcomeUnknown`: any or all may be.
        `StaleStream`: an event was routed by another spread than the stream's; nothing was stored.
        Calls for different partitions may run at the same time; for one partition the caller awaits each.
        """
        ...

    def tail(self, positions: Mapping[int, int]) -> LogTail:
        """Read partitions from the given offsets on, for as long as the tail lives."""
        ...

    async def ends(self) -> Mapping[int, int]:
        """Per partition the next offset to be written, as the log itself says at this moment (never a cached one)."""
        ...

    async def starts(self) -> Mapping[int, int]:
        """Per partition the first offset that is still kept."""
        ...


@runtime_checkable
class ForeignSource(Protocol):
    """What a log may offer that others can write into as well: word of what none of our processes wrote."""

    def on_foreign(self, call: Callable[[ForeignRecord], None]) -> Callable[[], None]:
        """Call this, in the running loop, for each such record that any tail of this log object meets, again each time
        one meets it; what is returned ends that. It must return at once and not raise."""
        ...


class LogTail(Protocol):
    """A reader that follows partitions. Not shared between tasks."""

    async def poll(self, *, max_records: int, timeout: float) -> Sequence[LogBatch]:
        """Wait up to ``timeout`` seconds for records; empty when there were none.

        Within a partition batches follow each other without gap or overlap and records ascend by offset. What was
        appended by any process is seen: by the appending process at once, by others within 50 ms.
        """
        ...

    def seek(self, partition: int, offset: int) -> None:
        """Go on from this offset; starts following the partition if it was not followed."""
        ...

    def forget(self, partition: int) -> None:
        """Stop following a partition."""
        ...

    async def close(self) -> None:
        """Give everything back. Idempotent."""
        ...


class EventStore(Protocol):
    """History: the visible records, complete below the checkpoint, searchable."""

    @property
    def is_log(self) -> bool:
        """True: the log itself answers; whatever it holds is in the store, and nothing needs to be persisted, looked
        up or admitted. False: nodes carry the log into the store (`persist`), look identities up in it before they
        append (`lookup`), and make streams known to it first (`admit`)."""
        ...

    async def checkpoints(self) -> Mapping[int, int]:
        """Per partition the next offset that is *not* yet in the store; everything below it is."""
        ...

    async def page(self, query: PageQuery) -> HistoryPage:
        """Visible records, never at or beyond the checkpoint nor below the floor. ``next`` never exceeds the checkpoint
        either, so that a reader can tell what it has really been given; ``deleted`` and ``missing`` say what it lacks.
        """
        ...

    async def find(self, stream: str, event_id: str, source: str | None) -> Sequence[Record]:
        """The visible records with this id in the stream: at most one with a source, else one for each source that
        used the id, at most 10."""
        ...

    async def offset_at(self, append_ms: int) -> Mapping[int, int]:
        """Per partition the first offset whose append time is not earlier; the checkpoint where there is none."""
        ...

    async def append_time(self, partition: int, offset: int) -> int | None:
        """Append time of the last record at or below the offset, in ms; None where nothing so old is kept."""
        ...

    async def streams(self, *, after: str, limit: int) -> Sequence[StreamInfo]:
        """Streams in byte order of their names, those behind ``after``."""
        ...

    async def stream(self, name: str) -> StreamInfo | None:
        """One stream, or None where it was never written to nor created."""
        ...

    async def create_stream(self, name: str, *, spread: int) -> StreamInfo:
        """Create a stream, or return it if it exists with this spread. Raises `StreamConflict` if with another."""
        ...

    async def starts(self) -> Mapping[int, int]:
        """Per partition the floor: the first offset that is still kept; 0 where nothing was ever deleted."""
        ...

    async def persist(self, *batches: FeedBatch) -> None:
        """Put stretches of the log, of different partitions, into the store together: the visible records of
        [start, next), and for every other offset of it a stub. Then the checkpoint is at least ``next``.

        Idempotent and complete: any number of processes may persist overlapping stretches at any time, in pieces cut
        anyhow, again after any error; each record is stored and counted once. Durable on a majority before it returns.
        ``start`` must not be above the checkpoint, which would leave a hole: raises `InternalError`; the other
        batches are stored all the same. Raises `Unavailable` or `OutcomeUnknown`; then all of it is to be repeated.
        """
        ...

    async def give_up(self, partition: int, start: int, stop: int) -> None:
        """The log has deleted [start, stop) before it was stored: go on without it. Then the checkpoint is at least
        ``stop``, and pages say that this range was deleted, as far as nobody has stored it after all.

        ``start`` is the checkpoint or below it. Idempotent. Raises `Unavailable` or `OutcomeUnknown`; then it is to be
        repeated.
        """
        ...

    async def lookup(self, partition: int, events: Sequence[NewEvent]) -> Mapping[bytes, Duplicate]:
        """Which of these events, all routed to this partition, are stored already, by identity. Each identity stands at
        most once in ``events``.

        Everything below the checkpoint is found, and possibly more; of streams with a spread, in each of the stream's
        partitions. One question to the store however many events there are (one more for each spread stream among
        them). Raises `Unavailable`.
        """
        ...

    async def admit(self, spreads: Mapping[str, int]) -> None:
        """Make sure that these streams exist, with these spreads; to be called before their first event is appended.

        Costs nothing for streams that this object has seen. Raises `StaleStream` for one that exists with another
        spread, `Unavailable` or `OutcomeUnknown`.
        """
        ...


STARTING = "starting"
"""The role of a node that waits for its servers."""


class Member(msgspec.Struct, frozen=True):
    """One process in the registry's set; nothing of it changes during the life of an incarnation."""

    id: str
    incarnation: str
    role: str
    """node, gateway, or the name of a service; starting = a node that waits for its servers."""
    url: str
    """Where other processes reach it; empty where they cannot."""
    version: str
    zone: str
    capacity: float
    """Relative weight for routing: CPUs it may use, or as set."""

    @property
    def key(self) -> str:
        """``id/incarnation``: its key in the heartbeat map."""
        return f"{self.id}/{self.incarnation}"

    @classmethod
    def nameless(cls, key: str) -> Member:
        """One of whom nothing is known but its key."""
        node_id, _, incarnation = key.rpartition("/")
        return cls(id=node_id, incarnation=incarnation, role="", url="", version="", zone="", capacity=0.0)


class Beat(msgspec.Struct, frozen=True, omit_defaults=True):
    """One heartbeat."""

    seq: int
    """Goes up by one with each beat; what the failure detector looks at."""
    state: str
    """live or draining."""
    cpu: float
    """Share of one core used since the last beat, 0 to n."""
    memory_bytes: int
    in_flight: int
    ewma_ms: float
    """Smoothed time to settle a handoff."""
    lag_records: int
    connections: int
    partitions: int
    waits: dict[str, str] = {}
    """What it lacks before it can serve: ``log`` or ``store`` → what was tried."""


class NodeRegistry(Protocol):
    """A distributed set of live processes and a map of their heartbeats. A hint, never a lock: what it says may be
    late, and the set keeps what a dead process left behind until somebody reaps it."""

    async def join(self, member: Member) -> None:
        """Put a process into the set. Idempotent."""
        ...

    async def leave(self, member: Member) -> None:
        """Take a process out of the set and its heartbeat out of the map. Idempotent; also used to reap the dead."""
        ...

    async def beat(self, key: str, beat: Beat) -> Mapping[str, Beat]:
        """Write a heartbeat, which vanishes by itself 5 s after the last one; then those that have not, as `beats`."""
        ...

    async def members(self) -> Sequence[Member]:
        """The set as it is now."""
        ...

    async def beats(self) -> Mapping[str, Beat]:
        """The heartbeats not yet expired."""
        ...


@runtime_checkable
class LeaderSource(Protocol):
    """What a log may offer beside `EventLog`: who leads its partitions."""

    def leaders(self) -> Mapping[int, int]:
        """Broker → how many partitions it leads, those that lead none included; empty while it is not known."""
        ...


@runtime_checkable
class Explaining(Protocol):
    """What a registry may offer beside `NodeRegistry`: why it cannot be reached."""

    @property
    def detail(self) -> str:
        """What is wrong with the connection and what was tried, for people; empty while there is one."""
        ...


@runtime_checkable
class ChangeSource(Protocol):
    """What a registry may offer beside `NodeRegistry`: word that its set has changed."""

    def on_change(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call this, in the running loop, whenever the set may have changed; what is returned ends that. Calls may come
        for nothing, and changes may come without one: whoever must know them all reads the set."""
        ...


class Handoff(Protocol):
    """Gateway → node: store these events."""

    async def append(
        self, epoch: Epoch, partition: int, events: Sequence[NewEvent], *, timeout: float
    ) -> Sequence[Settlement]:
        """Store events of one partition, in order; one settlement for each, in order.

        Events are settled when the node's own tail has read and judged them. May be called again with the same events
        after any error, on any node: whatever was stored is then answered as a duplicate.
        Raises `Unavailable` (nothing of it will be stored), `StaleEpoch`, `StaleStream`, `OutcomeUnknown`, or
        `LinkBroken` (unknown outcome, and the node should be taken for dead until it is heard of again).
        """
        ...


class Feed(Protocol):
    """Node → gateway: the visible records of partitions."""

    def feed(self, epoch: Epoch, positions: Mapping[int, int]) -> AbstractAsyncContextManager[AsyncIterator[FeedBatch]]:
        """Follow partitions from the given offsets, for as long as the context is open.

        Batches of a partition follow each other without gap or overlap. A batch without records moves ``next`` only.
        At least one batch a second is sent for the whole feed, so that silence means a broken link. The consumer's pace
        is the feed's: a slow one gets larger batches later, and costs the node nothing.
        Raises `LinkBroken` when the connection is lost, `StaleEpoch` when the node serves another epoch.
        """
        ...


class History(Protocol):
    """Node → gateway: questions about the past, answered from store and tail together: complete up to the end that the
    node's tail has reached."""

    async def info(self) -> NodeInfo:
        """Who answers, and for which log."""
        ...

    async def ends(self) -> Mapping[int, int]:
        """`EventLog.ends`."""
        ...

    async def starts(self) -> Mapping[int, int]:
        """Per partition the first offset that can still be read."""
        ...

    async def page(self, query: PageQuery) -> HistoryPage:
        """`EventStore.page`, but reaching up to the node's tail."""
        ...

    async def find(self, stream: str, event_id: str, source: str | None) -> Sequence[Record]:
        """`EventStore.find`."""
        ...

    async def offset_at(self, append_ms: int) -> Mapping[int, int]:
        """`EventStore.offset_at`, reaching up to the node's tail."""
        ...

    async def append_time(self, partition: int, offset: int) -> int | None:
        """`EventStore.append_time`."""
        ...

    async def streams(self, *, after: str, limit: int) -> Sequence[StreamInfo]:
        """`EventStore.streams`."""
        ...

    async def stream(self, name: str) -> StreamInfo | None:
        """`EventStore.stream`."""
        ...

    async def create_stream(self, name: str, *, spread: int) -> StreamInfo:
        """`EventStore.create_stream`."""
        ...


class NodeLink(Handoff, Feed, History, Protocol):
    """Everything a gateway asks of one node. Two adapters: the node object itself where both live in one process
    (`cdrs.node`), and HTTP (`shared.backends.http`)."""

    async def close(self) -> None:
        """Close connections. Idempotent."""
        ...
