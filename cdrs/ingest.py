"""Handoffs: admission, the lanes they wait in, and their deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from cdrs.deciding import DecidingLane
from cdrs.dedupe import JudgedLane
from cdrs.judgement import Judge, Verdict
from cdrs.lane import Answer, BaseLane, Lane, Waiting, size_of
from cdrs.tail import Tail
from cdrs.tasks import Supervisor, Wakeup
from shared.clock import Clock
from shared.deadlines import Deadlines
from shared.direct import Appended, DirectLog, HandedOver
from shared.errors import CdrsError, InvalidRequest, OutcomeUnknown, Overloaded, StaleEpoch, Unavailable
from shared.ports import EventLog, EventStore
from shared.position import Epoch
from shared.records import Entry, NewEvent, Record, Settlement
from shared.settings import NodeSettings
from shared.telemetry import Telemetry

LONGEST_TIMEOUT = 60.0
EWMA_SHARE = 0.1


class Ingest:
    """Takes handoffs and settles them. Each partition has a lane of its own; lanes know nothing of each other."""

    def __init__(
        self,
        log: EventLog,
        store: EventStore,
        settings: NodeSettings,
        clock: Clock,
        *,
        telemetry: Telemetry | None = None,
        strict: bool = False,
        supervisor: Supervisor | None = None,
    ) -> None:
        """``strict``: refuse events while the store cannot be asked whether they are copies."""
        self._supervisor = supervisor or Supervisor(clock, telemetry)
        self._log = log
        self._clock = clock
        self._settings = settings
        self._strict = strict
        self._telemetry = telemetry
        self._waiting_bytes = 0
        self._idle = Wakeup()
        self.tail = Tail(log, store, settings, self._observe)
        """The tail whose reading settles the handoffs."""
        self.in_flight = 0
        """Handoffs accepted and not yet answered."""
        self.ewma_ms = 0.0
        """Smoothed time from accepting a handoff to answering it."""
        self.refuses: Callable[[int], bool] = lambda _: False
        """Whether a partition takes no more events now, as its store is too far behind."""
        self.draining = False
        """Whether new handoffs are refused."""
        self._deadlines: Deadlines[Waiting] = Deadlines(self._give_up, clock.monotonic)
        self._direct = log if isinstance(log, DirectLog) else None
        self.commits_together = self._direct is not None
        """Whether the partitions of one `hand_over` go into the log as one."""
        self._ready: list[DecidingLane] = []
        """Lanes that have something to append."""
        self._tasks: asyncio.TaskGroup | None = None
        self._lanes: list[BaseLane] = [self._lane(partition, store) for partition in range(log.partitions)]

    def _lane(self, partition: int, store: EventStore) -> BaseLane:
        if self._log.decides_identity:
            return DecidingLane(partition, self._wants, self._release)

        def judge() -> Judge:
            return self.tail.judges[partition]

        return JudgedLane(
            partition,
            self._append_to_log,
            self._release,
            judge=judge,
            store=store,
            window=self._settings.window,
            strict=self._strict,
            knows=lambda stream: any(ring.has_stream(stream) for ring in self.tail.rings.values()),
        )

    async def run(self) -> None:
        """Run the lanes until cancelled. What is unsettled then gets its error."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                for lane in self._lanes:
                    if isinstance(lane, Lane):
                        self._tasks.create_task(self._supervisor.run(f"lane {lane.partition}", lane.run))
                await asyncio.get_running_loop().create_future()
        finally:
            self._tasks = None
            self.draining = True
            for lane in self._lanes:
                lane.close()
            self._deadlines.close()

    async def append(
        self, epoch: Epoch, partition: int, events: Sequence[NewEvent], *, timeout: float
    ) -> Sequence[Settlement]:
        """`shared.ports.Handoff.append`."""
        answer: asyncio.Future[Sequence[Settlement]] = asyncio.get_running_loop().create_future()

        def answered(outcome: Answer) -> None:
            if answer.done():
                return
            if isinstance(outcome, CdrsError):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        if not events:
            return []
        handoff = self._accept(epoch, partition, events, timeout, answered)
        try:
            return await answer
        except asyncio.CancelledError:
            if not handoff.is_answered:
                handoff.answer(OutcomeUnknown("nobody waits for the answer"))
                self._lanes[partition].forsake(handoff)
            raise

    def hand_over(self, epoch: Epoch, handoffs: Sequence[HandedOver], *, timeout: float) -> None:
        """`shared.direct.DirectHandoff.hand_over`."""
        for partition, events, answered in handoffs:
            if not events:
                answered([])
                continue
            try:
                self._accept(epoch, partition, events, timeout, answered)
            except CdrsError as error:
                answered(error)
        if self._ready:
            self._append_all()

    def _accept(
        self,
        epoch: Epoch,
        partition: int,
        events: Sequence[NewEvent],
        timeout: float,
        answered: Callable[[Answer], None],
    ) -> Waiting:
        size = size_of(events)
        self._admit(epoch, partition, size)
        if min([event.spread for event in events], default=1) < 1:  # it would be the spread of a new stream, for good
            raise InvalidRequest("an event comes routed by a spread of at least 1")
        started = self._clock.monotonic()
        handoff = Waiting(partition, events, size, started, answered, self._answered)
        self._waiting_bytes += size
        self.in_flight += 1
        self._deadlines.add(handoff, started + min(timeout, LONGEST_TIMEOUT))
        self._lanes[partition].put(handoff)
        return handoff

    def _answered(self, handoff: Waiting, outcome: Answer) -> None:
        self._deadlines.discard(handoff)
        self.in_flight -= 1
        self._idle.set()
        if not isinstance(outcome, CdrsError):
            self._took((self._clock.monotonic() - handoff.started) * 1000.0)
        handoff.answered(outcome)

    def _give_up(self, handoff: Waiting) -> None:
        """Its deadline has passed."""
        lane = self._lanes[handoff.partition]
        error = lane.give_up(handoff)
        handoff.answer(error)
        lane.forsake(handoff)

    @property
    def fullness(self) -> float:
        """Share of the room for waiting events that is taken."""
        return self._waiting_bytes / self._settings.max_waiting_bytes if self._settings.max_waiting_bytes else 0.0

    async def drain(self, timeout: float) -> None:
        """Refuse new handoffs and wait until those in flight are answered, at most ``timeout`` seconds."""
        self.draining = True
        deadline = self._clock.monotonic() + timeout
        while self.in_flight and (left := deadline - self._clock.monotonic()) > 0:
            await self._idle.wait(min(left, 0.1))

    def _admit(self, epoch: Epoch, partition: int, size: int) -> None:
        if epoch != self._log.epoch:
            raise StaleEpoch(f"this node's log is {self._log.epoch}")
        if not 0 <= partition < self._log.partitions:
            raise InvalidRequest(f"there are {self._log.partitions} partitions")
        if self.draining:
            raise Unavailable("the node is draining")
        if not self.tail.rings:
            raise Unavailable("the node is starting", retry_after=1.0)
        if self.tail.judges and (not self.tail.ready or self.tail.lag.get(partition, 0) > self._settings.window // 2):
            raise Unavailable("the node is behind the log", retry_after=1.0)
        if partition in self.tail.broken:
            raise Unavailable(self.tail.broken[partition], retry_after=5.0)
        if self.refuses(partition):
            raise Overloaded("the store is too far behind the log", retry_after=5.0)
        if self._waiting_bytes and self._waiting_bytes + size > self._settings.max_waiting_bytes:
            raise Overloaded("too many events wait for the log", retry_after=1.0)

    # --- appends ----------------------------------------------------------------------------------

    def _wants(self, lane: DecidingLane) -> None:
        """What lanes want within one turn of the event loop goes to the log as one."""
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._append_all)
        self._ready.append(lane)

    def _append_all(self) -> None:
        ready, self._ready = self._ready, []
        started = self._clock.monotonic()
        appends = [
            (lane.partition, events, partial(self._appended, lane, started))
            for lane in ready
            if (events := lane.begin())
        ]
        if self._direct is not None:
            self._direct.append_all(appends)
            return
        for partition, events, appended in appends:
            if self._tasks is None:
                appended(Unavailable("the node is stopping"))
            else:
                self._tasks.create_task(self._append_one(partition, events, appended))

    async def _append_one(self, partition: int, events: Sequence[NewEvent], appended: Appended) -> None:
        outcome: Sequence[Entry] | Exception
        try:
            outcome = await self._log.append(partition, events, base=0)
        except Exception as error:  # noqa: BLE001 -- the lane logs what is no answer
            outcome = error
        appended(outcome)

    def _appended(self, lane: DecidingLane, started: float, outcome: Sequence[Entry] | Exception) -> None:
        if self._telemetry is not None and not isinstance(outcome, Exception):
            self._telemetry.append_took(self._clock.monotonic() - started)
        lane.appended(outcome)

    async def _append_to_log(self, partition: int, events: Sequence[NewEvent], base: int) -> Sequence[Entry]:
        started = self._clock.monotonic()
        entries = await self._log.append(partition, events, base=base)
        if self._telemetry is not None:
            self._telemetry.append_took(self._clock.monotonic() - started)
        return entries

    def _observe(self, partition: int, records: Sequence[Record], verdicts: Sequence[Verdict] | None) -> None:
        self._lanes[partition].observe(records, verdicts)

    def _release(self, size: int) -> None:
        self._waiting_bytes -= size

    def _took(self, milliseconds: float) -> None:
        self.ewma_ms += EWMA_SHARE * (milliseconds - self.ewma_ms) if self.ewma_ms else milliseconds
