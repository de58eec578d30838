"""One partition's way into the log: handoffs wait in order, and one batch of them at a time is stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from cdrs.judgement import Verdict
from cdrs.tasks import Wakeup
from shared.errors import CdrsError, ClientError, IdempotencyMismatch, OutcomeUnknown, StaleStream, Unavailable
from shared.records import Duplicate, Entry, NewEvent, Record, Settlement

BATCH_EVENTS = 4096
BATCH_BYTES = 8 * 1024 * 1024
"""What handoffs are joined up to; a single larger one still goes in one piece."""
IDLE_WAIT = 60.0
EVENT_OVERHEAD = 256
"""Bytes that an event costs beyond its value while it waits; a round figure."""

Append = Callable[[int, Sequence[NewEvent], int], Awaitable[Sequence[Entry]]]
"""`EventLog.append` with its stopwatch: partition, events, base."""


def size_of(events: Sequence[NewEvent]) -> int:
    """What these events count for while they wait, in bytes."""
    return sum([len(event.value) for event in events]) + EVENT_OVERHEAD * len(events)


def settle_duplicate(entry: Duplicate) -> Settlement:
    """The answer for an identity that was there before."""
    if not entry.same_body:
        return Settlement(
            problem=IdempotencyMismatch.problem,
            detail="an event with this stream, source and id is stored with another body or key",
        )
    return Settlement(entry.partition, entry.offset, entry.append_ms, duplicate=True)


Answer = Sequence[Settlement] | CdrsError
"""How a handoff ends: its settlements, or what `Handoff.append` raises."""


class Waiting:
    """A handoff from its acceptance to its answer."""

    __slots__ = ("_on_answer", "answered", "batch", "events", "is_answered", "partition", "size", "started")

    def __init__(  # noqa: PLR0917 (the hot path: positional arguments are cheaper)
        self,
        partition: int,
        events: Sequence[NewEvent],
        size: int,
        started: float,
        answered: Callable[[Answer], None],
        on_answer: Callable[[Waiting, Answer], None],
    ) -> None:
        """``answered``: who asked; ``on_answer``: who tells them."""
        self.partition = partition
        self.events = events
        self.size = size
        self.started = started
        self.batch: Batch | None = None
        """None while it waits for its turn."""
        self.is_answered = False
        self.answered = answered
        self._on_answer = on_answer

    def answer(self, outcome: Answer) -> None:
        """Tell whoever waits, unless it was told something before."""
        if not self.is_answered:
            self.is_answered = True
            self._on_answer(self, outcome)


class Batch:
    """The handoffs of one append, and what is known of their events. Event i of the batch has slot i of `results`."""

    __slots__ = ("appended", "events", "handoffs", "is_over", "missing", "results", "slots")

    def __init__(self, handoffs: Sequence[Waiting]) -> None:
        self.handoffs = handoffs
        self.events: Sequence[NewEvent]
        if len(handoffs) == 1:
            self.events = handoffs[0].events
        else:
            self.events = [event for handoff in handoffs for event in handoff.events]
        self.results: list[Settlement | None] = [None] * len(self.events)
        self.missing = len(self.events)
        """How many slots are still empty."""
        self.slots: dict[bytes, int] = {}
        """Identity → slot, for those that the tail has yet to read."""
        self.appended = False
        self.is_over = False

    def fill(self, slot: int, settlement: Settlement) -> None:
        """Settle one event; a later word on it replaces an earlier one."""
        if self.results[slot] is None:
            self.missing -= 1
        self.results[slot] = settlement

    def abandoned(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return all(handoff.is_answered for handoff in self.handoffs)

    def answer(self) -> None:
        """Give every handoff its settlements; all slots are filled."""
        results = [result for result in self.results if result is not None]
        if len(self.handoffs) == 1:
            self.handoffs[0].answer(results)
            return
        at = 0
        for handoff in self.handoffs:
            end = at + len(handoff.events)
            handoff.answer(results[at:end])
            at = end

    def fail(self, error: CdrsError) -> None:
        """Give every handoff this error."""
        for handoff in self.handoffs:
            handoff.answer(type(error)(error.detail, retry_after=error.retry_after))


class BaseLane(ABC):
    """What all lanes share; how a batch gets its settlements is the subclass's."""

    def __init__(self, partition: int, release: Callable[[int], None]) -> None:
        self.partition = partition
        self._release = release
        self._queue: deque[Waiting] = deque()

    @abstractmethod
    def put(self, handoff: Waiting) -> None:
        """Queue a handoff."""

    def give_up(self, handoff: Waiting) -> CdrsError:
        """The handoff's deadline has passed: the error that tells whether its events may still be stored."""
        if handoff.batch is not None:
            self.forsake(handoff)
            return OutcomeUnknown("the log did not confirm in time")
        self._queue.remove(handoff)
        self._release(handoff.size)
        return Unavailable("the log is busy; the events waited for their turn in vain", retry_after=1.0)

    def forsake(self, handoff: Waiting) -> None:
        """Nobody waits for this handoff any more. What was accepted is stored all the same."""
        batch = handoff.batch
        if batch is not None and batch.appended and batch.abandoned():
            self._over(batch)

    def close(self) -> None:
        """Refuse what waits."""
        while self._queue:
            self._fail(self._queue.popleft(), Unavailable("the node is stopping"))

    @abstractmethod
    def observe(self, records: Sequence[Record], verdicts: Sequence[Verdict] | None) -> None:
        """The tail has read these."""

    def _next_handoffs(self) -> list[Waiting]:
        taken: list[Waiting] = []
        events = size = 0
        while self._queue:
            handoff = self._queue[0]
            events += len(handoff.events)
            size += handoff.size
            if taken and (events > BATCH_EVENTS or size > BATCH_BYTES):
                break
            taken.append(self._queue.popleft())
        return taken

    def _fail(self, handoff: Waiting, error: CdrsError) -> None:
        """Nothing of this handoff was stored, and nothing will be."""
        batch = Batch([handoff])
        batch.fail(error)
        self._over(batch)

    def _over(self, batch: Batch) -> None:
        """Nothing more will come of this batch."""
        if not batch.is_over:
            self._detach(batch)
            self._release(sum([handoff.size for handoff in batch.handoffs]))
            batch.handoffs = ()  # they point back at it, and such circles are left to the collector

    def _detach(self, batch: Batch) -> None:
        """Nothing more shall be written into this batch."""
        batch.is_over = True


class Lane(BaseLane):
    """A lane with a task of its own, which stores batch after batch."""

    def __init__(self, partition: int, append: Append, release: Callable[[int], None]) -> None:
        super().__init__(partition, release)
        self._append = append
        self._wakeup = Wakeup()

    def put(self, handoff: Waiting) -> None:
        self._queue.append(handoff)
        self._wakeup.set()

    async def run(self) -> None:
        """Store batch after batch, until cancelled."""
        while True:
            while self._queue:
                await self._store(self._next_handoffs())
            await self._wakeup.wait(IDLE_WAIT)

    @abstractmethod
    async def _settle(self, batch: Batch) -> None:
        """Bring a batch into the log, and answer it."""

    async def _store(self, handoffs: Sequence[Waiting]) -> None:
        batch = Batch(handoffs)
        for handoff in handoffs:
            handoff.batch = batch
        try:
            await self._settle(batch)
        except (StaleStream, ClientError) as error:
            if len(handoffs) > 1:
                # Nothing was stored because of one of them; the others need not suffer for it.
                self._detach(batch)
                await self._store_each(handoffs)
                return
            batch.fail(error)
            self._over(batch)
        except CdrsError as error:
            batch.fail(error)
            self._over(batch)
        except BaseException:
            batch.fail(OutcomeUnknown("the node failed while it stored the events"))
            self._over(batch)
            raise

    async def _store_each(self, handoffs: Sequence[Waiting]) -> None:
        """One after the other. Where one ends all of it, those behind it are told."""
        waiting = deque(handoffs)
        try:
            while waiting:
                await self._store([waiting.popleft()])
        finally:
            for handoff in waiting:
                self._fail(handoff, Unavailable("the node failed before it came to these events", retry_after=1.0))
