"""What a producer's request hands to the dispatcher, and the queue of one partition. No I/O.

Nothing here costs a future or a task per event: a submission has one list of results, a count of what is missing and
one waiter; the events of a submission in one partition are one `Chunk`; a `Handoff` is a run of chunks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from shared.clock import Clock
from shared.deadlines import Deadlines
from shared.errors import OutcomeUnknown, Unavailable
from shared.records import NewEvent, Settlement

EVENT_OVERHEAD = 512
"""What an event in memory costs besides its value, in bytes, roughly."""

NOT_SENT = Settlement(problem=Unavailable.problem, detail="no node took the event in time; it was not stored")
UNKNOWN = Settlement(
    problem=OutcomeUnknown.problem, detail="the answer did not come in time; repeat the event with the same id"
)


ALONE = (0,)
"""The places of a submission's only event."""


def size_of(event: NewEvent) -> int:
    """Bytes an event is counted with."""
    return len(event.value) + EVENT_OVERHEAD


class Chain:
    """Submissions of one request that come one after the other: once something of one was given up, nothing of a later
    one is sent any more. Whoever sends again what was given up, and all that came after it, keeps its order then."""

    __slots__ = ("is_broken", "spreads")

    def __init__(self) -> None:
        self.is_broken = False
        self.spreads: dict[str, int] = {}
        """Stream → the spread by which its events are routed, for as long as any of them is under way."""


class Submission:
    """Events on their way, of one request. Settled by its deadline, come what may."""

    __slots__ = (
        "_chain", "_chunks", "_clock", "_deadline", "_deadlines", "_done", "_progress", "_release", "_waiter", "bytes",
        "pending", "results", "started",
    )  # fmt: skip

    def __init__(
        self,
        count: int,
        *,
        deadline: float,
        clock: Clock,
        release: Callable[[int], None],
        started: float = 0.0,
        chain: Chain | None = None,
    ) -> None:
        self.started = started
        """When it was put in line, monotonic."""
        self.results: list[Settlement | None] = [None] * count
        """One for each event, in the order submitted; None while it is under way."""
        self.pending = count
        """How many are still under way."""
        self.bytes = 0
        self._chain = chain
        self._chunks: list[Chunk] = []
        self._deadline = deadline
        self._clock = clock
        self._release = release
        self._done: Callable[[], None] | None = None
        self._deadlines: Deadlines[Submission] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._progress = False

    @property
    def done(self) -> bool:
        """Whether every event is settled."""
        return self.pending == 0

    def when_done(self, done: Callable[[], None], deadlines: Deadlines[Submission]) -> None:
        """Instead of waiting: have this called once every event is settled, at the latest at the deadline. It must not
        fail."""
        self._done = done
        self._deadlines = deadlines
        deadlines.add(self, self._deadline)

    async def wait(self) -> None:
        """Wait until every event is settled, or the deadline. Afterwards each has a `Settlement`: what was not settled
        in time is ``outcome-unknown`` if it may have been stored, else ``unavailable``, and then it never will be."""
        while self.pending and await self._sleep():
            pass
        self.expire()

    async def wait_progress(self) -> None:
        """Wait until further results are in since the last call, at the latest until the deadline (as `wait`). For one
        waiter at a time."""
        if self.pending and not self._progress and not await self._sleep():
            self.expire()
        self._progress = False

    async def _sleep(self) -> bool:
        """Until woken or the deadline; False from the deadline on."""
        left = self._deadline - self._clock.monotonic()
        if left <= 0:
            return False
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = loop.call_later(left, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None
        return self._clock.monotonic() < self._deadline

    def is_over(self, now: float) -> bool:
        """Whether nothing of it may be sent any more."""
        is_cut_off = self._chain is not None and self._chain.is_broken
        return is_cut_off or not self.pending or now >= self._deadline

    def add(self, chunk: Chunk) -> None:
        """One partition's share. For the dispatcher."""
        self._chunks.append(chunk)
        self.bytes += chunk.bytes

    def settle(self, indexes: Sequence[int], settlements: Sequence[Settlement], size: int) -> None:
        """Enter results, unless the deadline entered others before. For the dispatcher; `wake` follows."""
        if not self.pending:
            return
        results = self.results
        if len(indexes) == len(results):  # all of it: the places are ascending
            results[:] = settlements
        else:
            for index, settlement in zip(indexes, settlements, strict=True):
                results[index] = settlement
        self.pending -= len(indexes)
        self.bytes -= size
        self._progress = True
        if not self.pending:
            self._chunks.clear()  # they point back here, and such circles are left to the collector
        self._release(size)

    def wake(self) -> None:
        """Let whoever waits look at the results."""
        if self._waiter is not None:
            _wake(self._waiter)
        if self._done is not None and not self.pending:
            done, self._done = self._done, None
            if self._deadlines is not None:
                self._deadlines.discard(self)
            done()

    def break_chain(self) -> None:
        """Something of it was given up: what comes after it must not be sent."""
        if self._chain is not None:
            self._chain.is_broken = True

    def expire(self) -> None:
        """Give up on whatever is not settled. Idempotent."""
        if not self.pending:
            return
        self.break_chain()
        for chunk in self._chunks:
            for at, index in enumerate(chunk.indexes):
                if self.results[index] is None:
                    is_unknown = at < chunk.taken and chunk.handoff is not None and chunk.handoff.is_uncertain
                    self.results[index] = UNKNOWN if is_unknown else NOT_SENT
            chunk.events = ()  # it may stand in its queue for a while
        self._release(self.bytes)
        self.pending = self.bytes = 0
        self._progress = True
        self._chunks.clear()
        self.wake()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Chunk:
    """The events of one submission that go to one partition, in order."""

    __slots__ = ("bytes", "count", "events", "handoff", "indexes", "submission", "taken")

    def __init__(self, submission: Submission, indexes: Sequence[int], events: Sequence[NewEvent], size: int) -> None:
        self.submission = submission
        self.indexes = indexes
        """Their places in the submission."""
        self.events = events
        self.count = len(events)
        self.bytes = size
        self.taken = 0
        """How many are, or were, part of a handoff."""
        self.handoff: Handoff | None = None
        """The latest handoff that took some."""


class Part:
    """Some consecutive events of a chunk, as part of a handoff."""

    __slots__ = ("events", "indexes", "size", "submission")

    def __init__(self, submission: Submission, indexes: Sequence[int], events: Sequence[NewEvent], size: int) -> None:
        self.submission = submission
        self.indexes = indexes
        self.events = events
        self.size = size


class Handoff:
    """What goes to a node as one: never reordered, never overtaken, sent again as it is until it is settled."""

    __slots__ = ("events", "is_uncertain", "parts")

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.events: list[NewEvent] = []
        self.is_uncertain = False
        """Some of it may be in the log although nobody said so."""

    def drop_expired(self, now: float) -> None:
        """Leave out the events whose submission is over; they must not be sent (again)."""
        if any(part.submission.is_over(now) for part in self.parts):
            kept: list[Part] = []
            for part in self.parts:
                if part.submission.is_over(now):
                    part.submission.expire()
                else:
                    kept.append(part)
            self.parts = kept
            self.events = [event for part in kept for event in part.events]

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Give each event its result and wake each submission, of which there is one part here."""
        at = 0
        for part in self.parts:
            upto = at + len(part.events)
            part.submission.settle(part.indexes, settlements[at:upto], part.size)
            at = upto
        for part in self.parts:
            part.submission.wake()

    def refuse(self, refusal: Settlement) -> None:
        """Give it up: every event gets this."""
        for part in self.parts:
            part.submission.break_chain()
        self.settle([refusal] * len(self.events))

    def by_stream(self) -> list[Handoff]:
        """The same events as one handoff for each stream, each in order."""
        streams: dict[str, Handoff] = {}
        for part in self.parts:
            shares: dict[str, tuple[list[int], list[NewEvent]]] = {}
            for index, event in zip(part.indexes, part.events, strict=True):
                indexes, events = shares.setdefault(event.stream, ([], []))
                indexes.append(index)
                events.append(event)
            for stream, (indexes, events) in shares.items():
                handoff = streams.setdefault(stream, Handoff())
                handoff.parts.append(Part(part.submission, indexes, events, sum(map(size_of, events))))
                handoff.events += events
        return list(streams.values())


class Queue:
    """The chunks waiting in one partition, first in, first out."""

    __slots__ = ("_chunks", "events")

    def __init__(self) -> None:
        self._chunks: deque[Chunk] = deque()
        self.events = 0
        """How many wait."""

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def put(self, chunk: Chunk) -> None:
        """Last in line."""
        self._chunks.append(chunk)
        self.events += chunk.count

    def expire(self) -> None:
        """Give up on everything."""
        self.events = 0
        while self._chunks:
            self._chunks.popleft().submission.expire()

    def take(self, now: float, *, max_events: int, max_bytes: int) -> Handoff:
        """Everything that waits, within the bounds, but at least one event; empty where nothing may be sent."""
        handoff = Handoff()
        size = 0
        while self._chunks:
            chunk = self._chunks[0]
            if chunk.submission.is_over(now):
                chunk.submission.expire()
                self._chunks.popleft()
                self.events -= chunk.count - chunk.taken
                continue
            part = _share(chunk, max_events - len(handoff.events), max_bytes - size, is_first=not handoff.events)
            if part is None:
                break
            chunk.handoff = handoff
            handoff.parts.append(part)
            handoff.events += part.events
            self.events -= len(part.events)
            size += part.size
            if chunk.taken < chunk.count:
                break
            self._chunks.popleft()
        return handoff

    def refuse_rest(self, refusal: Settlement) -> None:
        """What is left of a chunk of which the latest handoff took the beginning, which was refused, is so too: it must
        not be stored before that is sent again."""
        chunk = self._chunks[0] if self._chunks else None
        if chunk is None or not chunk.taken:
            return
        self._chunks.popleft()
        left = chunk.events[chunk.taken :]
        self.events -= chunk.count - chunk.taken
        chunk.submission.break_chain()
        chunk.submission.settle(chunk.indexes[chunk.taken :], [refusal] * len(left), sum(map(size_of, left)))
        chunk.submission.wake()


def _share(chunk: Chunk, room: int, room_bytes: int, *, is_first: bool) -> Part | None:
    """What of a chunk fits; None where nothing does."""
    start, total = chunk.taken, len(chunk.events)
    if start == 0 and total <= room and chunk.bytes <= room_bytes:
        chunk.taken = total
        return Part(chunk.submission, chunk.indexes, chunk.events, chunk.bytes)
    stop, size = start, 0
    while stop < total and stop - start < room:
        more = size_of(chunk.events[stop])
        if size + more > room_bytes and not (is_first and stop == start):
            break
        size += more
        stop += 1
    if stop == start:
        return None
    chunk.taken = stop
    return Part(chunk.submission, chunk.indexes[start:stop], chunk.events[start:stop], size)
