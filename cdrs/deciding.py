"""The lane for logs whose append itself refuses known identities. Driven by calls: no task, no future, no timer."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from cdrs.judgement import Verdict
from cdrs.lane import BaseLane, Batch, Waiting, settle_duplicate
from shared.errors import CdrsError, ClientError, OutcomeUnknown, StaleStream
from shared.records import Duplicate, Entry, NewEvent, Record, Settlement

logger = logging.getLogger(__name__)


class DecidingLane(BaseLane):
    """One append at a time. The log keeps the order of appends, so the next batch may go while the tail still has to
    read the last."""

    def __init__(self, partition: int, wants: Callable[[DecidingLane], None], release: Callable[[int], None]) -> None:
        """``wants`` is called when there is something to append; `begin` is due then, once."""
        super().__init__(partition, release)
        self._wants = wants
        self._alone: deque[Waiting] = deque()
        """Handoffs of a batch that was refused because of one of them; each is tried by itself."""
        self._unread: list[Batch] = []
        self._storing: Batch | None = None
        self._is_wanted = False

    def put(self, handoff: Waiting) -> None:
        self._queue.append(handoff)
        self._go_on()

    def begin(self) -> Sequence[NewEvent]:
        """The next batch, to be appended now; `appended` must follow. Empty where nothing waits any more."""
        self._is_wanted = False
        handoffs = [self._alone.popleft()] if self._alone else self._next_handoffs()
        if not handoffs:
            return ()
        batch = self._storing = Batch(handoffs)
        for handoff in handoffs:
            handoff.batch = batch
        events = batch.events
        batch.slots = {event.identity: slot for slot, event in enumerate(events)}
        if len(batch.slots) < len(events):
            # Of events with one identity the first is the one that is stored.
            batch.slots = {events[slot].identity: slot for slot in reversed(range(len(events)))}
        # Before the append: the tail may read an event before the append has returned.
        self._unread.append(batch)
        return events

    def appended(self, outcome: Sequence[Entry] | Exception) -> None:
        """How the append of the batch ended."""
        batch, self._storing = self._storing, None
        if batch is None:
            return  # closed meanwhile
        if isinstance(outcome, Exception):
            self._failed(batch, outcome)
        else:
            self._stored(batch, outcome)
        self._go_on()

    def observe(self, records: Sequence[Record], verdicts: Sequence[Verdict] | None) -> None:
        partition = self.partition
        for batch in tuple(self._unread):
            take, results = batch.slots.pop, batch.results
            found = 0
            for record in records:
                slot = take(record.identity, None)
                if slot is not None:
                    results[slot] = Settlement(partition, record.offset, record.append_ms)
                    found += 1
            batch.missing -= found
            self._answer_if_complete(batch)

    def close(self) -> None:
        super().close()
        self._storing = None
        for batch in tuple(self._unread):
            batch.fail(OutcomeUnknown("the node stopped before it had read the events back"))
            self._over(batch)
        while self._alone:
            batch = Batch([self._alone.popleft()])
            batch.fail(OutcomeUnknown("the node is stopping"))
            self._over(batch)

    def _go_on(self) -> None:
        if self._storing is None and not self._is_wanted and (self._queue or self._alone):
            self._is_wanted = True
            self._wants(self)

    def _stored(self, batch: Batch, entries: Sequence[Entry]) -> None:
        batch.appended = True
        if any(entries):
            for slot, entry in enumerate(entries):
                if isinstance(entry, Duplicate):
                    self._fill_duplicate(batch, slot, entry)
        self._answer_if_complete(batch)
        if not batch.is_over and batch.abandoned():
            self._over(batch)

    def _failed(self, batch: Batch, error: Exception) -> None:
        if isinstance(error, (StaleStream, ClientError)) and len(batch.handoffs) > 1:
            # Nothing was stored because of one of them; the others need not suffer for it.
            self._detach(batch)
            self._alone.extend(batch.handoffs)
            return
        if not isinstance(error, CdrsError):
            logger.error("lane %d failed", self.partition, exc_info=error)
            error = OutcomeUnknown("the node failed while it stored the events")
        batch.fail(error)
        self._over(batch)

    def _fill_duplicate(self, batch: Batch, slot: int, entry: Duplicate) -> None:
        identity = batch.events[slot].identity
        if batch.slots.get(identity) == slot:
            # The tail is still to read the original, which another process has stored.
            del batch.slots[identity]
        batch.fill(slot, settle_duplicate(entry))

    def _answer_if_complete(self, batch: Batch) -> None:
        if batch.appended and not batch.missing:
            batch.answer()
            self._over(batch)

    def _detach(self, batch: Batch) -> None:
        super()._detach(batch)
        if batch in self._unread:
            self._unread.remove(batch)
