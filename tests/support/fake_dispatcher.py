"""Stand-ins for the collaborators of producing, so that its HTTP side can be tried without nodes: a dispatcher that
keeps events in dictionaries, a stream catalog, a router. They are our own classes' stand-ins, not an engine's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.bodies import BodyRoom
from gateway.submission import Chain
from gateway.turnstile import Turnstile
from shared.clock import SystemClock
from shared.errors import CdrsError
from shared.position import Epoch
from shared.records import NewEvent, Settlement
from shared.settings import Settings
from shared.telemetry import Telemetry

EPOCH = Epoch(1, 0x9F3A22C1)


class FakeSubmission:
    def __init__(self, results: list[Settlement], *, gate: asyncio.Event) -> None:
        self.results: list[Settlement | None] = list(results)
        self._gate = gate

    @property
    def done(self) -> bool:
        return self._gate.is_set()

    async def wait(self) -> None:
        await self._gate.wait()

    def expire(self) -> None:
        """Everything was stored at once."""


class FakeDispatcher:
    """Stores at once, answers when the gate is open. ``judge`` may settle an event otherwise, ``refuse`` refuse all."""

    def __init__(self) -> None:
        self.log: dict[int, list[NewEvent]] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.judge: Callable[[NewEvent], Settlement | None] = lambda _event: None
        self.refuse: Callable[[], CdrsError | None] = lambda: None
        self.submissions: list[int] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._known: dict[bytes, tuple[int, int, NewEvent]] = {}

    def check(self) -> None:
        """Never overloaded."""

    def submit(
        self,
        events: Sequence[tuple[int, NewEvent]],
        *,
        timeout: float,
        chain: Chain | None = None,
        done: Callable[[], None] | None = None,
    ) -> FakeSubmission:
        assert timeout > 0
        error = self.refuse()
        if error is not None:
            raise error
        self.submissions.append(len(events))
        submission = FakeSubmission([self._store(p, event) for p, event in events], gate=self.gate)
        if done is not None:
            self._waiting.append(asyncio.ensure_future(submission.wait()))
            self._waiting[-1].add_done_callback(lambda _: done())
        return submission

    def submit_run(
        self,
        partition: int,
        events: Sequence[NewEvent],
        *,
        timeout: float,
        chain: Chain | None = None,
        done: Callable[[], None] | None = None,
    ) -> FakeSubmission:
        return self.submit([(partition, event) for event in events], timeout=timeout, chain=chain, done=done)

    def submit_one(
        self, partition: int, event: NewEvent, *, timeout: float, done: Callable[[], None]
    ) -> FakeSubmission:
        return self.submit([(partition, event)], timeout=timeout, done=done)

    def _store(self, partition: int, event: NewEvent) -> Settlement:
        judged = self.judge(event)
        if judged is not None:
            return judged
        known = self._known.get(event.identity)
        if known is not None:
            at, offset, first = known
            if (first.value, first.key) != (event.value, event.key):
                return Settlement(problem="idempotency-mismatch")
            return Settlement(at, offset, 1, duplicate=True)
        log = self.log.setdefault(partition, [])
        offset = len(log)
        log.append(event)
        self._known[event.identity] = (partition, offset, event)
        return Settlement(partition, offset, 1)

    def events(self) -> list[NewEvent]:
        return [event for log in self.log.values() for event in log]

    def values(self) -> list[bytes]:
        return [event.value for event in self.events()]


class FakeCatalog:
    def __init__(self) -> None:
        self.spreads: dict[str, int] = {}
        self.known: dict[str, int] = {}
        self.asked: list[str] = []

    def cached_spread(self, stream: str) -> int | None:
        return self.known.get(stream)

    has_absent = False

    def stored(self, streams: Iterable[str]) -> None:
        """Nothing is kept of streams that did not exist."""

    async def spread_of(self, stream: str) -> int:
        await self.learn([stream])
        return self.known[stream]

    async def learn(self, streams: Iterable[str]) -> None:
        for stream in streams:
            await self.refresh(stream)

    async def refresh(self, stream: str) -> None:
        await asyncio.sleep(0)
        self.asked.append(stream)
        self.known[stream] = self.spreads.get(stream, 1)


@dataclass
class FakeRouter:
    epoch: Epoch = EPOCH
    partitions: int = 12


@dataclass
class FakeContext:
    """`gateway.context.GatewayContext`, as far as producing looks at it."""

    settings: Settings = field(default_factory=Settings)
    clock: SystemClock = field(default_factory=SystemClock)
    telemetry: Telemetry = field(default_factory=lambda: Telemetry(version="test"))
    router: FakeRouter = field(default_factory=FakeRouter)
    catalog: FakeCatalog = field(default_factory=FakeCatalog)
    dispatcher: FakeDispatcher = field(default_factory=FakeDispatcher)
    builders: Turnstile = field(default_factory=lambda: Turnstile(1))
    bodies: BodyRoom = field(default_factory=BodyRoom)

    def ingested(self, result: str) -> float:
        text = self.telemetry.render()[0].decode()
        line = f'cdrs_ingest_events_total{{result="{result}"}} '
        return next((float(row[len(line) :]) for row in text.splitlines() if row.startswith(line)), 0.0)


def with_gateway(**changes: Any) -> Settings:
    """Settings of which some of the gateway's are changed."""
    settings = Settings()
    return settings.model_copy(update={"gateway": settings.gateway.model_copy(update=changes)})
