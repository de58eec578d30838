"""One partition's way to the nodes: handoffs in order, one in flight, to the next node in rank where one fails.

A node takes the handoffs of all partitions in one call, which is one request where it is in another process, and
answers each by itself (`Flight`); neither costs a task here. Whatever did not go well at once, and links that do not
offer that, are dealt with by a task that lasts until the lane is empty or the best node takes calls again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from gateway.routing import NodeHandle
from gateway.submission import NOT_SENT, Chunk, Handoff, Queue
from shared.errors import (
    CdrsError,
    ClientError,
    InternalError,
    LinkBroken,
    Overloaded,
    StaleEpoch,
    StaleStream,
    Unavailable,
)
from shared.records import Settlement

if TYPE_CHECKING:
    from gateway.dispatch import Dispatcher

FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5
GRACE = 0.25
"""Seconds a node's own answer at its deadline is waited for."""
SETTLED_WITHIN = 0.5
"""Seconds a handoff shall take: larger ones are cut smaller, or under load a node would work on what its gateway has
given up, and everything would be answered in a few late gulps."""
LEAST_EVENTS = 256
"""Smaller ones are not made for that: where every handoff takes long, however small, they would only slow it down."""

logger = logging.getLogger(__name__)


class Flight:
    """A handoff on its way to a node that answers by a call."""

    __slots__ = ("_lane", "_was_uncertain", "handle", "handoff", "is_over", "started")

    def __init__(self, lane: Lane, handle: NodeHandle, handoff: Handoff, started: float) -> None:
        self.handle = handle
        self.handoff = handoff
        self.started = started
        self.is_over = False
        self._lane = lane
        self._was_uncertain = handoff.is_uncertain
        handoff.is_uncertain = True
        handle.flights.add(self)

    def land(self, outcome: Sequence[Settlement] | CdrsError) -> None:
        """The node's answer, or that it is gone; what comes after the first is ignored."""
        if self.is_over:
            return
        self.is_over = True
        self.handle.flights.discard(self)
        self._lane.landed(self, outcome, was_uncertain=self._was_uncertain)

    def lose(self) -> None:
        """The node is out of routing."""
        self.land(LinkBroken("the node is gone"))


class Lane:
    """One partition: its queue, and at most one handoff that is not settled."""

    __slots__ = (
        "_dispatcher", "_flight", "_is_busy", "_router", "_watch", "moving_since", "partition", "queue", "room",
        "settled_at"
    )  # fmt: skip

    def __init__(self, dispatcher: Dispatcher, partition: int) -> None:
        self.queue = Queue()
        self.partition = partition
        self.settled_at = self.moving_since = float("-inf")
        self.room = dispatcher.settings.handoff_events
        """Most events of the next handoff."""
        self._dispatcher = dispatcher
        self._router = dispatcher.router
        self._watch = dispatcher.router.watch()
        self._flight: Flight | None = None
        self._is_busy = False
        """Something is in flight, or about to be."""

    @property
    def waiting(self) -> int:
        """Events in the queue."""
        return self.queue.events

    def put(self, chunk: Chunk) -> None:
        """Last in line."""
        self.queue.put(chunk)
        if not self._is_busy:
            self._is_busy = True
            self.settled_at = max(self.settled_at, chunk.submission.started)  # until now there was nothing to settle
            self._dispatcher.wants(self)

    def take_off(self, now: float, handle: NodeHandle | None) -> Flight | None:
        """Begin the next handoff; ``handle`` is the best node. Where that takes many at once, the handoff is returned,
        to be handed over."""
        handoff = self._take(now)
        if not handoff.events:
            self._is_busy = False
            return None
        if handle is None or handle.direct is None:
            self._run(handoff)
            return None
        self._flight = Flight(self, handle, handoff, now)
        return self._flight

    def landed(self, flight: Flight, outcome: Sequence[Settlement] | CdrsError, *, was_uncertain: bool) -> None:
        """The handoff in flight has come to an end."""
        dispatcher, handoff = self._dispatcher, flight.handoff
        self._flight = None
        dispatcher.landed(flight.handle)
        if isinstance(outcome, CdrsError):
            self._run(handoff, _Failure(flight.handle, outcome, was_uncertain=was_uncertain))
            return
        if len(outcome) != len(handoff.events):
            error = self._wrong_answer(flight.handle, outcome, handoff)
            self._run(handoff, _Failure(flight.handle, error, was_uncertain=was_uncertain))
            return
        self._fit(len(outcome), dispatcher.note_settled(self, flight.handle, handoff, flight.started))
        self._next()
        handoff.settle(outcome)

    def expire(self) -> None:
        """The dispatcher stops: give up on everything."""
        self.queue.expire()
        if self._flight is not None:
            self._flight.is_over = True
            self._flight.handle.flights.discard(self._flight)
            _expire(self._flight.handoff)
            self._flight = None

    def _take(self, now: float) -> Handoff:
        settings = self._dispatcher.settings
        return self.queue.take(now, max_events=self.room, max_bytes=settings.handoff_bytes)

    def _fit(self, events: int, seconds: float) -> None:
        """Let the next handoff be of a size that is settled in time, as this one took so long."""
        most = self._dispatcher.settings.handoff_events
        if seconds > SETTLED_WITHIN:
            share = max(SETTLED_WITHIN / seconds, 0.25)
            self.room = min(self.room, max(round(events * share), min(LEAST_EVENTS, most)))
        elif seconds < SETTLED_WITHIN / 2 and self.room < most:
            self.room = min(2 * self.room, most)

    def best(self) -> NodeHandle | None:
        """The node to try first; None where none can be reached."""
        ranked = self._router.ranked(self.partition)
        return ranked[0] if ranked else None

    def _next(self) -> None:
        if self.queue:
            self._dispatcher.wants(self)
        else:
            self._is_busy = False

    # --- by a task --------------------------------------------------------------------------------

    def _run(self, handoff: Handoff, failure: _Failure | None = None) -> None:
        tasks = self._dispatcher.tasks
        if tasks is None:
            _expire(handoff)
            return
        tasks.create_task(self._work(handoff, failure), name=f"handoffs of partition {self.partition}")

    async def _work(self, handoff: Handoff, failure: _Failure | None) -> None:
        """Deliver this handoff, and those behind it while the best node takes one at a time only."""
        clock = self._dispatcher.clock
        while True:
            if handoff.events:
                await self._deliver(handoff, failure)
            best = self.best()
            if not self.queue or (best is not None and best.direct is not None):
                break
            handoff, failure = self._take(clock.monotonic()), None
        self._next()

    async def _deliver(self, handoff: Handoff, failure: _Failure | None) -> None:
        try:
            await self._settle(handoff, failure)
        except StaleStream as error:
            # Refused as a whole, though one stream may be to blame: each gets a handoff of its own.
            shares = handoff.by_stream()
            if len(shares) == 1:
                self._refuse(handoff, error)
                return
            handoff.is_uncertain = True
            for share in shares:
                try:
                    await self._settle(share)
                except StaleStream as refusal:
                    self._refuse(share, refusal)
        except asyncio.CancelledError:
            _expire(handoff)
            raise

    async def _settle(self, handoff: Handoff, failed: _Failure | None = None) -> None:
        """Send a handoff until it is settled or nothing of it is left; ``failed`` is an attempt that was made already.
        Raises `StaleStream`."""
        clock, router = self._dispatcher.clock, self._router
        started, pause, failure = clock.monotonic(), FIRST_PAUSE, ""
        tried: set[NodeHandle] = set()
        busy: Overloaded | None = None
        if failed is not None:
            tried.add(failed.handle)
            failure = self._failed(failed.handle, handoff, failed.error, was_uncertain=failed.was_uncertain)
            busy = failed.error if isinstance(failed.error, Overloaded) else None
            handoff.drop_expired(started)
        while handoff.events:
            handle = next((handle for handle in router.ranked(self.partition) if handle not in tried), None)
            if handle is None:
                if busy is not None and not handoff.is_uncertain:
                    self._refuse(handoff, busy)  # waiting adds nothing but more that waits
                    return
                await self._watch.wait(pause)
                tried.clear()
                busy = None
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                tried.add(handle)
                error = await self._attempt(handle, handoff)
                if error is None:
                    if failure and self._dispatcher.observer is not None:
                        self._dispatcher.observer.failed_over(failure, clock.monotonic() - started)
                    return
                failure = failure or _cause(error)
                busy = error if isinstance(error, Overloaded) else busy
            handoff.drop_expired(clock.monotonic())

    async def _attempt(self, handle: NodeHandle, handoff: Handoff) -> CdrsError | TimeoutError | None:
        """One attempt at one node. Returns why it failed; None where the handoff is settled."""
        dispatcher, timeout = self._dispatcher, self._dispatcher.settings.handoff_timeout
        started, was_uncertain = dispatcher.clock.monotonic(), handoff.is_uncertain
        handoff.is_uncertain = True
        dispatcher.in_flight += 1
        try:
            async with handle.attempt(timeout + GRACE):
                settlements = await handle.link.append(
                    self._router.epoch, self.partition, handoff.events, timeout=timeout
                )
        except (CdrsError, TimeoutError) as failure:
            self._failed(handle, handoff, failure, was_uncertain=was_uncertain)
            return failure
        finally:
            dispatcher.in_flight -= 1
        if len(settlements) != len(handoff.events):
            error = self._wrong_answer(handle, settlements, handoff)
            self._failed(handle, handoff, error, was_uncertain=was_uncertain)
            return error
        self._fit(len(settlements), dispatcher.note_settled(self, handle, handoff, started))
        handoff.settle(settlements)
        return None

    def _failed(
        self, handle: NodeHandle, handoff: Handoff, error: CdrsError | TimeoutError, *, was_uncertain: bool
    ) -> str:
        is_refusal = isinstance(error, (Unavailable, ClientError)) and not isinstance(error, LinkBroken)
        if is_refusal:
            handoff.is_uncertain = was_uncertain  # the node said that it stored nothing
        if isinstance(error, StaleStream):
            raise error
        if isinstance(error, (LinkBroken, StaleEpoch)):
            self._router.broken(handle)
        if isinstance(error, (ClientError, InternalError)):
            logger.error("%s failed a handoff of partition %d: %r", handle.key, self.partition, error)
        _forget_freshness(handoff)
        cause = _cause(error)
        if self._dispatcher.observer is not None:
            self._dispatcher.observer.failed(handle.member.id, cause)
        return cause

    @staticmethod
    def _wrong_answer(handle: NodeHandle, settlements: Sequence[Settlement], handoff: Handoff) -> LinkBroken:
        logger.error("%s answered %d of %d events", handle.key, len(settlements), len(handoff.events))
        return LinkBroken("not an answer")

    def _refuse(self, handoff: Handoff, error: CdrsError) -> None:
        refusal = Settlement(problem=error.problem, detail=error.detail or NOT_SENT.detail)
        if not isinstance(error, StaleStream):  # the rest would be stale, too, and is not of that stream alone
            self.queue.refuse_rest(refusal)
        handoff.refuse(refusal)


def _cause(error: CdrsError | TimeoutError) -> str:
    return error.problem if isinstance(error, CdrsError) else "timeout"


def _forget_freshness(handoff: Handoff) -> None:
    """After an attempt somebody may have stored a server-made id: it has to be looked up from now on."""
    if any(event.fresh for event in handoff.events):
        for part in handoff.parts:
            part.events = [msgspec.structs.replace(event, fresh=False) for event in part.events]
        handoff.events = [event for part in handoff.parts for event in part.events]


class _Failure:
    """An attempt that failed, and whether something of the handoff may have been stored before it."""

    __slots__ = ("error", "handle", "was_uncertain")

    def __init__(self, handle: NodeHandle, error: CdrsError, *, was_uncertain: bool) -> None:
        self.handle = handle
        self.error = error
        self.was_uncertain = was_uncertain


def _expire(handoff: Handoff) -> None:
    for part in handoff.parts:
        part.submission.expire()
