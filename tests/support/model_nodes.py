"""Stand-ins for the ports around the gateway: an in-memory log, nodes on it that can be made to misbehave, a registry
and a membership whose picture the test paints. They state what the ports promise in the plainest way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from shared.detector import NodeState
from shared.direct import HandedOver
from shared.errors import CdrsError, LinkBroken, OutcomeUnknown, StaleEpoch, StaleStream, Unavailable
from shared.member_changes import Change, Subscription
from shared.member_states import Since
from shared.membership import MemberView, Picture
from shared.ports import Beat, Member, NodeLink
from shared.position import Epoch
from shared.records import FeedBatch, NewEvent, NodeInfo, Record, Settlement, identity_of

EPOCH = Epoch(1, 7)


def event(name: str, *, stream: str = "s", fresh: bool = False, size: int = 0, spread: int = 1) -> NewEvent:
    """An event whose id is its value."""
    return NewEvent(
        identity=identity_of(stream, "/test", name),
        stream=stream,
        key=None,
        value=name.encode().ljust(size),
        data_at=0,
        kind=0,
        accepted_ms=0,
        spread=spread,
        fresh=fresh,
    )


def member(name: str, *, role: str = "node", incarnation: str = "1", capacity: float = 1.0) -> Member:
    return Member(
        id=name, incarnation=incarnation, role=role, url=f"model://{name}", version="0", zone="", capacity=capacity
    )


class ModelLog:
    """A partitioned log that decides identity itself."""

    def __init__(self, partitions: int = 2, *, epoch: Epoch = EPOCH) -> None:
        self.epoch = epoch
        self.records: list[list[Record]] = [[] for _ in range(partitions)]
        self.identities: dict[bytes, tuple[int, int]] = {}
        self.spreads: dict[str, int] = {}
        self.grown = asyncio.Event()

    def append(self, partition: int, events: Sequence[NewEvent]) -> list[Settlement]:
        for item in events:
            if self.spreads.get(item.stream, item.spread) != item.spread:
                raise StaleStream(f"the spread of {item.stream} is another")
        settlements = [self._append(partition, item) for item in events]
        self.grown.set()
        self.grown = asyncio.Event()
        return settlements

    def _append(self, partition: int, item: NewEvent) -> Settlement:
        found = self.identities.get(item.identity)
        if found is not None:
            return Settlement(*found, append_ms=1, duplicate=True)
        kept = self.records[partition]
        kept.append(
            Record(partition, len(kept), 1, item.identity, item.stream, item.key, item.value, 0, 0, item.accepted_ms)
        )
        self.identities[item.identity] = (partition, len(kept) - 1)
        return Settlement(partition, len(kept) - 1, append_ms=1)

    def values(self, partition: int) -> list[str]:
        return [record.value.decode().strip() for record in self.records[partition]]


class ModelNode:
    """A node on a `ModelLog`; how it behaves is set by its public fields. Also the link to itself (`NodeLink`)."""

    def __init__(self, log: ModelLog, of: Member) -> None:
        self.log = log
        self.member = of
        self.epoch = log.epoch
        self.hangs = False
        """Stopped: no answer, no beat."""
        self.errors: list[Exception] = []
        """What the next appends raise, before anything is stored."""
        self.errors_after: list[Exception] = []
        """What the next appends raise although everything is stored."""
        self.late: list[float] = []
        """Copies of the next appends are stored only when `settle_late` is called, and the link breaks."""
        self.is_reachable = True
        self.strained: list[int] = []
        """Partitions that it says others should serve."""
        self.handoffs: list[tuple[int, list[NewEvent]]] = []
        """Every attempt that arrived."""
        self.in_flight: dict[int, int] = {}
        self.most_in_flight = 0
        self.gate: asyncio.Event | None = None
        """Appends wait for it."""
        self.opened: list[dict[int, int]] = []
        """Positions of every feed."""
        self.open_feeds = 0
        self.max_batch = 1000
        self.chaos: random.Random | None = None
        """Feeds cut batches anywhere, repeat them within bounds and break at random."""
        self.feed_error: Exception | None = None
        self.feed_gate: asyncio.Event | None = None
        """Feeds send nothing before it."""
        self._broken = asyncio.Event()
        self._late: list[tuple[int, Sequence[NewEvent]]] = []

    # --- misbehaviour -------------------------------------------------------------------------

    def break_link(self) -> None:
        """Every connection breaks now; new ones work."""
        self._broken.set()
        self._broken = asyncio.Event()

    def kill(self) -> None:
        self.is_reachable = False
        self.break_link()

    def settle_late(self) -> None:
        """What was under way when the link broke arrives in the log."""
        for partition, events in self._late:
            self.log.append(partition, events)
        self._late.clear()

    # --- NodeLink -----------------------------------------------------------------------------

    is_direct = False
    """Links take handoffs by calls, as those within one process do."""
    commits_together = False
    """Such a link's."""

    def link(self) -> NodeLink:
        link: Any = DirectLink(self) if self.is_direct else self
        return link  # type: ignore[no-any-return]

    async def info(self) -> NodeInfo:
        await self._answer()
        own = self.member
        return NodeInfo(own.id, own.incarnation, self.epoch, len(self.log.records), strained=list(self.strained))

    async def append(
        self, epoch: Epoch, partition: int, events: Sequence[NewEvent], *, timeout: float
    ) -> Sequence[Settlement]:
        self.handoffs.append((partition, list(events)))
        self.in_flight[partition] = self.in_flight.get(partition, 0) + 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight[partition])
        try:
            await self._answer()
            if epoch != self.epoch:
                raise StaleEpoch("another epoch")
            if self.gate is not None:
                await self._or_broken(self.gate.wait())
            if self.errors:
                raise self.errors.pop(0)
            if self.late:
                self.late.pop(0)
                self._late.append((partition, list(events)))
                raise LinkBroken("cut")
            settlements = self.log.append(partition, events)
            if self.errors_after:
                raise self.errors_after.pop(0)
            return settlements
        finally:
            self.in_flight[partition] -= 1

    async def ends(self) -> Mapping[int, int]:
        await self._answer()
        return {partition: len(records) for partition, records in enumerate(self.log.records)}

    async def close(self) -> None:
        return None

    @asynccontextmanager
    async def feed(self, epoch: Epoch, positions: Mapping[int, int]) -> AsyncIterator[AsyncIterator[FeedBatch]]:
        await self._answer()
        if self.feed_error is not None:
            raise self.feed_error
        if epoch != self.epoch:
            raise StaleEpoch("another epoch")
        self.opened.append(dict(positions))
        self.open_feeds += 1
        try:
            yield self._batches(dict(positions))
        finally:
            self.open_feeds -= 1

    async def _batches(self, positions: dict[int, int]) -> AsyncIterator[FeedBatch]:
        first = True
        if self.feed_gate is not None:
            await self._or_broken(self.feed_gate.wait())
        while True:
            grown = self.log.grown
            for partition, start in list(positions.items()):
                records = self.log.records[partition][start : start + self._batch_size()]
                if records or first:
                    first = False
                    positions[partition] = start + len(records)
                    await self._pause()
                    yield FeedBatch(partition, start, start + len(records), records)
            if all(positions[partition] >= len(self.log.records[partition]) for partition in positions):
                beat = next(iter(positions))
                await self._or_broken(grown.wait(), timeout=0.2)
                yield FeedBatch(beat, positions[beat], positions[beat], [])

    def _batch_size(self) -> int:
        return self.chaos.randint(1, 4) if self.chaos is not None else self.max_batch

    async def _pause(self) -> None:
        await self._answer()
        chaos = self.chaos
        if chaos is not None:
            await asyncio.sleep(chaos.choice((0, 0, 0, 0.001)))
            if chaos.random() < 0.03:
                raise LinkBroken("chaos")

    async def _answer(self) -> None:
        if not self.is_reachable:
            raise LinkBroken("connection refused")
        if self.hangs:
            await self._or_broken(asyncio.Event().wait())

    async def _or_broken(self, work: Any, *, timeout: float | None = None) -> None:
        broken = self._broken
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(broken.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=timeout)
        finally:
            for task in tasks:
                task.cancel()
        if broken.is_set():
            raise LinkBroken("connection reset")


class DirectLink:
    """A node's link with `DirectHandoff`."""

    def __init__(self, node: ModelNode) -> None:
        self._node = node
        self._tasks: set[asyncio.Task[None]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    @property
    def commits_together(self) -> bool:  # from Python 3.12 on, `isinstance` asks no `__getattr__`
        return self._node.commits_together

    def hand_over(self, epoch: Epoch, handoffs: Sequence[HandedOver], *, timeout: float) -> None:
        for handoff in handoffs:
            task = asyncio.ensure_future(self._append(epoch, handoff, timeout))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _append(self, epoch: Epoch, handoff: HandedOver, timeout: float) -> None:
        partition, events, answered = handoff
        try:
            async with asyncio.timeout(timeout):
                settlements = await self._node.append(epoch, partition, events, timeout=timeout)
        except TimeoutError:
            answered(OutcomeUnknown("late"))
        except CdrsError as error:
            answered(error)
        else:
            answered(settlements)


class PaintedMembership:
    """A membership whose picture the test paints."""

    def __init__(self) -> None:
        self.registry = "ok"
        self.views: dict[str, MemberView] = {}
        self.broken: list[str] = []
        self._subscriptions: list[Subscription] = []

    @property
    def picture(self) -> Picture:
        return Picture(1, self.registry, dict(self.views))

    def subscribe(self, *, loads: bool = True) -> Subscription:
        self._subscriptions.append(Subscription(loads=loads))
        return self._subscriptions[-1]

    def break_link(self, key: str) -> None:
        self.broken.append(key)

    def paint(self, of: Member, state: NodeState = NodeState.LIVE, *, seq: int | None = None) -> None:
        """Show a member in this state, with a newer beat unless one is given."""
        before = self.views.get(of.key)
        last = before.beat.seq if before is not None and before.beat is not None else 0
        beat = Beat(last + 1 if seq is None else seq, "live", 0, 0, 0, 0, 0, 0, 0)
        self.views[of.key] = MemberView(of, beat, state, 0, Since(0, 0, 0.0), in_set=True, in_heartbeats=True)
        self.tell(Change("load", of.key))

    def erase(self, of: Member) -> None:
        self.views.pop(of.key, None)
        self.tell(Change("leave", of.key))

    def tell(self, change: Change) -> None:
        for subscription in self._subscriptions:
            subscription.put(change)


class ModelRegistry:
    """A registry in a dict. ``is_away`` makes every call fail, ``wipe`` loses everything."""

    def __init__(self) -> None:
        self.set: dict[str, Member] = {}
        self.map: dict[str, Beat] = {}
        self.is_away = False
        self.calls = 0

    def wipe(self) -> None:
        self.set.clear()
        self.map.clear()

    def _check(self) -> None:
        self.calls += 1
        if self.is_away:
            raise Unavailable("the registry is away")

    async def join(self, of: Member) -> None:
        self._check()
        self.set[of.key] = of

    async def leave(self, of: Member) -> None:
        self._check()
        self.set.pop(of.key, None)
        self.map.pop(of.key, None)

    async def beat(self, key: str, beat: Beat) -> Mapping[str, Beat]:
        self._check()
        self.map[key] = beat
        return dict(self.map)

    async def members(self) -> Sequence[Member]:
        self._check()
        return list(self.set.values())

    async def beats(self) -> Mapping[str, Beat]:
        self._check()
        return dict(self.map)


async def eventually(condition: Callable[[], object], *, timeout: float = 10.0) -> None:
    """Wait for a condition; fails the test when it does not come true in time."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.002)


UNKNOWN = OutcomeUnknown("the log did not say")
