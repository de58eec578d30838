"""The dispatcher: gets events into the log through whichever node is there, in order.

For each partition there is one queue and at most one handoff in flight, to one node; what arrives meanwhile is the
next handoff (group commit without a timer). A handoff that fails goes, whole and in the same order, to the next-ranked
node, and nothing newer goes before it is settled. Late copies at the first node are then in the same order too, and
identities make them duplicates, so the first occurrences stay in order under any interleaving.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from gateway.admission import Admission
from gateway.handing import Lane
from gateway.routing import NodeHandle, Router
from gateway.submission import ALONE, EVENT_OVERHEAD, Chain, Chunk, Handoff, Submission, size_of
from shared.clock import Clock
from shared.deadlines import Deadlines
from shared.direct import HandedOver
from shared.errors import Overloaded, Unavailable
from shared.records import NewEvent
from shared.settings import Settings

SMOOTHING = 0.1

__all__ = ["DispatchObserver", "Dispatcher", "Submission"]


class DispatchObserver(Protocol):
    """Who wants to know how handoffs go; called once per handoff, never per event."""

    def settled(self, node: str, events: int, seconds: float) -> None:
        """A node settled a handoff, in so many seconds."""
        ...

    def failed(self, node: str, cause: str) -> None:
        """An attempt failed; ``cause`` is a problem name or ``timeout``."""
        ...

    def failed_over(self, cause: str, seconds: float) -> None:
        """A handoff that failed at first was settled so many seconds after its first attempt began."""
        ...


class Dispatcher:
    """All partitions' queues of one gateway."""

    def __init__(
        self, router: Router, settings: Settings, clock: Clock, *, observer: DispatchObserver | None = None
    ) -> None:
        self.settings = settings.gateway
        self.router = router
        self.clock = clock
        self.observer = observer
        self.admission = Admission(self.settings.max_wait)
        self.waiting_bytes = 0
        """Bytes of all events without receipt."""
        self.in_flight = 0
        """Handoffs at nodes."""
        self.ewma_ms = 0.0
        """Smoothed time to settle a handoff."""
        self.tasks: asyncio.TaskGroup | None = None
        """Where lanes run their tasks; None while the dispatcher does not run."""
        self._lanes: dict[int, Lane] = {}
        self._ready: list[Lane] = []
        self._is_scheduled = False
        self._airborne: dict[NodeHandle, int] = {}
        """Nodes that commit all partitions together → handoffs under way there."""
        self._deadlines: Deadlines[Submission] = Deadlines(Submission.expire, clock.monotonic)
        self._emptied = asyncio.Event()

    async def run(self) -> None:
        """Work until cancelled; whatever is not settled then is given up honestly."""
        async with asyncio.TaskGroup() as self.tasks:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                # Before the group ends its tasks: what lands from now on must not begin new ones.
                self._stop()

    def _stop(self) -> None:
        self.tasks = None
        for lane in self._lanes.values():
            lane.expire()
        self._lanes.clear()
        self._ready.clear()
        self._airborne.clear()
        self._deadlines.close()

    def submit_one(self, partition: int, event: NewEvent, *, timeout: float, done: Callable[[], None]) -> Submission:
        """Put one event in line, and have ``done`` called once it is settled, at the latest at its deadline. Never
        waits; raises as `submit` does, and then ``done`` is not called. ``done`` must not fail."""
        size = size_of(event)
        submission = self._submission(1, size, timeout)
        submission.when_done(done, self._deadlines)
        self._put(partition, Chunk(submission, ALONE, (event,), size))
        return submission

    def submit(
        self,
        events: Sequence[tuple[int, NewEvent]],
        *,
        timeout: float,
        chain: Chain | None = None,
        done: Callable[[], None] | None = None,
    ) -> Submission:
        """Put (partition, event) pairs in line; order is kept within a partition. Never waits. ``chain``: of a request
        that submits more than once. ``done``: as of `submit_one`, for whoever does not wait.

        Raises `Overloaded` when too much is waiting, `Unavailable` before the first node was reached: nothing of it
        will be stored.
        """
        shares: dict[int, tuple[list[int], list[NewEvent]]] = {}
        for index, (partition, event) in enumerate(events):
            share = shares.get(partition)
            if share is None:
                shares[partition] = ([index], [event])
            else:
                share[0].append(index)
                share[1].append(event)
        return self._submit(shares, len(events), timeout, chain, done)

    def submit_run(
        self,
        partition: int,
        events: Sequence[NewEvent],
        *,
        timeout: float,
        chain: Chain | None = None,
        done: Callable[[], None] | None = None,
    ) -> Submission:
        """`submit` of events that all go to one partition."""
        return self._submit({partition: (range(len(events)), events)}, len(events), timeout, chain, done)

    def _submit(
        self,
        shares: Mapping[int, tuple[Sequence[int], Sequence[NewEvent]]],
        count: int,
        timeout: float,
        chain: Chain | None,
        done: Callable[[], None] | None,
    ) -> Submission:
        """``shares``: partition → its events, and their places among all."""
        self.check()
        sizes = [sum([len(event.value) for event in of]) + EVENT_OVERHEAD * len(of) for _, of in shares.values()]
        submission = self._submission(count, sum(sizes), timeout, chain)
        if done is not None:
            submission.when_done(done, self._deadlines)
        for (partition, (indexes, of)), size in zip(shares.items(), sizes, strict=True):
            self._put(partition, Chunk(submission, indexes, of, size))
        return submission

    def check(self) -> None:
        """Raises `Overloaded` where an event would wait too long for its turn now; for requests of which nothing has
        been done yet."""
        now = self.clock.monotonic()
        admission = self.admission
        if admission.look(now, self._lanes.values()) if now >= admission.look_again else admission.is_closed:
            raise Overloaded("events would wait too long for their turn", retry_after=1)

    def _submission(self, count: int, size: int, timeout: float, chain: Chain | None = None) -> Submission:
        if self.tasks is None or not self.router.is_known:
            raise Unavailable("no node has been reached yet", retry_after=1)
        if self.waiting_bytes + size > self.settings.max_waiting_bytes:
            raise Overloaded("too many events are waiting for their receipts", retry_after=1)
        self.waiting_bytes += size
        now = self.clock.monotonic()
        return Submission(
            count, deadline=now + timeout, clock=self.clock, release=self._release, started=now, chain=chain
        )

    def _put(self, partition: int, chunk: Chunk) -> None:
        chunk.submission.add(chunk)
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = Lane(self, partition)
        lane.put(chunk)

    # --- handing over -----------------------------------------------------------------------------

    def wants(self, lane: Lane) -> None:
        """This lane has something to hand off and nothing in flight. What all lanes want within one turn of the event
        loop goes to each node as one."""
        self._ready.append(lane)
        self._schedule()

    def landed(self, handle: NodeHandle) -> None:
        """A handoff that was handed over has come to its end."""
        self.in_flight -= 1
        left = self._airborne.pop(handle, 0) - 1
        if left > 0:
            self._airborne[handle] = left
        elif self._ready:
            self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._is_scheduled = False
        ready, self._ready = self._ready, []
        if self.tasks is None:
            return  # stopping: the queues have been given up
        now, timeout = self.clock.monotonic(), self.settings.handoff_timeout
        together: dict[NodeHandle, list[HandedOver]] = {}
        for lane in ready:
            handle = lane.best()
            if handle is not None and handle in self._airborne and handle not in together:
                # One transaction is under way there; what gathers meanwhile is the next one.
                self._ready.append(lane)
                continue
            flight = lane.take_off(now, handle)
            if flight is not None:
                entry = (lane.partition, flight.handoff.events, flight.land)
                together.setdefault(flight.handle, []).append(entry)
        self._let_go(together, timeout)

    def _let_go(self, together: Mapping[NodeHandle, Sequence[HandedOver]], timeout: float) -> None:
        for handle, handoffs in together.items():
            assert handle.direct is not None
            self.in_flight += len(handoffs)
            if handle.direct.commits_together:
                self._airborne[handle] = len(handoffs)
            handle.direct.hand_over(self.router.epoch, handoffs, timeout=timeout)

    def _release(self, size: int) -> None:
        self.waiting_bytes -= size
        if not self.waiting_bytes:
            self._emptied.set()

    async def drained(self, timeout: float) -> bool:
        """Wait until nothing is waiting or in flight; False where something still is."""
        if self.waiting_bytes:
            self._emptied.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._emptied.wait()
            except TimeoutError:
                return False
        return True

    def note_settled(self, lane: Lane, handle: NodeHandle, handoff: Handoff, started: float) -> float:
        """Book a settled handoff, whose successful attempt began then; how many seconds that took."""
        now, events = self.clock.monotonic(), len(handoff.events)
        self.admission.settled(lane, now, events, now - handoff.parts[0].submission.started)
        seconds = now - started
        milliseconds = seconds * 1000
        self.ewma_ms += SMOOTHING * (milliseconds - self.ewma_ms) if self.ewma_ms else milliseconds
        if self.observer is not None:
            self.observer.settled(handle.member.id, events, seconds)
        return seconds
