"""One simulated world: real nodes and gateways on model engines and a model network, producers and subscribers that
write histories, and a nemesis; all on virtual time and all drawn from one seed.

Real, unchanged product code: `cdrs.node.Node` with its tail, judge, lanes, persister, feeds and history; of the gateway
membership and detector, router, dispatcher, feeds, hub and views, replay, cursors and subscriptions. Modelled: log,
store, registry (`simulation.engines`), the links between processes, the processes themselves and the clock.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import zlib
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from faults.checker import Verdict, check
from simulation.actors import WIDE, Publisher, Reader
from simulation.engines import Log, LogHandle, Registry, RegistryHandle, Store, StoreHandle
from simulation.links import Link
from simulation.loop import VirtualClock, VirtualLoop, simulate
from simulation.weather import Plan, Weather

from cdrs.node import Node
from gateway.asking import ask
from gateway.context import GatewayContext
from gateway.dispatch import Dispatcher
from gateway.feeds import FeedManager
from gateway.hub import Hub
from gateway.recent import latest
from gateway.replay import HistoryReader
from gateway.routing import Router
from gateway.streams import StreamCatalog
from shared.errors import CdrsError, LinkBroken, StreamConflict
from shared.membership import Load, Membership
from shared.partitioning import rendezvous
from shared.ports import Member, NodeLink
from shared.settings import (
    GatewaySettings,
    NodeSettings,
    PersistSettings,
    RegistrySettings,
    RetentionSettings,
    Settings,
    SseSettings,
)
from shared.telemetry import Telemetry

T = TypeVar("T")
WINDOW = 16
MAX_AGES = (0.2, 1.0)
PATIENCE = 90.0
"""Virtual seconds after the last fault in which everything must have healed."""


@lru_cache(maxsize=3)
def settings(*, max_age: float = 0.0) -> Settings:
    """Small windows, rings and deadlines, so that a few dozen events meet every edge of them."""
    return Settings(
        node=NodeSettings(window=WINDOW, ring_records=16),
        persist=PersistSettings(batch_records=5, linger=0.02, takeover=1.0, max_lag=1000),
        gateway=GatewaySettings(produce_timeout=3.0, handoff_timeout=1.0, handoff_events=6),
        sse=SseSettings(ring_records=16, backlog_bytes=4096, heartbeat=4.0, retry=0.1, max_age=20.0),
        registry=RegistrySettings(),
        retention=RetentionSettings(max_age=max_age, interval=0.1),
    )


class Process:
    """A process: its tasks die with it, its calls wait while it is stopped."""

    def __init__(self, world: World, name: str, incarnation: int) -> None:
        self.world = world
        self.name = f"{name}#{incarnation}"
        self.id = name
        self.incarnation = incarnation
        self.born = world.loop.now
        self.seen_at: float | None = None
        """When it beat last; None before it has joined."""
        self.member: Member | None = None
        self.is_dead = False
        self.is_draining = False
        self.is_blind = False
        """Nothing of the log reaches it, while everything else goes on."""
        self._running = asyncio.Event()
        self._running.set()
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.died = asyncio.Event()

    @property
    def is_running(self) -> bool:
        return not self.is_dead and self._running.is_set()

    def spawn(self, work: Coroutine[Any, Any, T], *, vital: bool = False) -> asyncio.Task[T]:
        """Run as part of the process; where something vital fails, all of it dies, as `services.launcher` does it."""
        task = self.world.loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._vital_ended if vital else self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled():
            task.exception()  # whoever waits for it sees it

    def _vital_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and not self.is_dead:
            error = task.exception()
            self.world.verdict.add("crash", f"{self.name} died of itself at {self.world.loop.now:.3f}: {error!r}")
            self.crash()

    async def call(self, delay: float) -> None:
        """The way from this process to anything outside."""
        if delay > 0:
            await asyncio.sleep(delay)
        while not self._running.is_set():
            await self._running.wait()
        if self.is_dead:
            raise LinkBroken("the process is dead")

    def pause(self) -> None:
        self.world.trace("pause", self.name)
        self.seen_at = self.world.loop.now if self.seen_at is not None else None
        self._running.clear()

    def resume(self) -> None:
        if not self._running.is_set():
            self.world.trace("resume", self.name)
            self._running.set()

    def clock(self) -> VirtualClock:
        """Everybody's, with ticks of its own."""
        number = zlib.crc32(f"{self.world.seed}/{self.name}".encode())
        return VirtualClock(self.world.loop, phase=number / 2**32)

    def crash(self) -> None:
        if self.is_dead:
            return
        self.world.trace("crash", self.name)
        self.seen_at = self.world.loop.now if self.seen_at is not None else None
        self.world.registry.beats()
        self.is_dead = True
        self._running.set()
        self.died.set()
        for task in list(self._tasks):
            task.cancel()


class NodeProcess(Process):
    """A CDRS node."""

    node: Node

    def start(self) -> None:
        world = self.world
        log, store = LogHandle(world.log, self), StoreHandle(world.store, self)
        ids = [(each, 1.0) for each in world.node_ids]
        self.node = Node(
            log, store, settings(max_age=world.max_age), self.clock(),
            node_id=self.id, incarnation=str(self.incarnation),
            preferred=lambda partition: rendezvous(partition, ids)[0] == self.id,
        )  # fmt: skip
        # Wake-ups in the order of arrival: a set of them would follow their addresses.
        self.node._tail._watchers = _Ordered()  # type: ignore[assignment]
        self.spawn(self.node.run(), vital=True)
        self.spawn(self._join(), vital=True)

    async def _join(self) -> None:
        while not await self.node.ready(5.0):
            pass
        self.member = _member(self, "node")
        self.seen_at = self.world.loop.now
        while True:
            await self.call(0)
            if not self.is_draining and not self.world.registry.is_away:
                self.world.registry.set[self.member.key] = self.member
            await asyncio.sleep(1.0)


class _Ordered(dict[Any, None]):
    """A set that keeps its order."""

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)


def _member(process: Process, role: str) -> Member:
    return Member(
        id=process.id, incarnation=str(process.incarnation), role=role, url=f"sim://{process.id}", version="0",
        zone="", capacity=1.0,
    )  # fmt: skip


class _NoUsage:
    def sample(self) -> tuple[float, int]:
        return 0.0, 0


class GatewayProcess(Process):
    """A gateway, put together as `services.gateway_role` does it, without its server."""

    context: GatewayContext

    def start(self) -> None:
        world, clock = self.world, self.clock()
        self.member = _member(self, "gateway")
        hub = Hub(settings().sse, clock, world.telemetry)
        membership = Membership(RegistryHandle(world.registry, self), settings(), clock, self.member, Load)
        membership._usage = _NoUsage()  # type: ignore[assignment]
        membership._subscriptions = _Ordered()  # type: ignore[assignment]
        router = Router(membership, settings(), clock, self._connect)
        router._watches = _Ordered()  # type: ignore[assignment]
        self.context = GatewayContext(
            settings=settings(), clock=clock, telemetry=world.telemetry, membership=membership, router=router,
            dispatcher=Dispatcher(router, settings(), clock), feeds=FeedManager(router, hub.sink), hub=hub,
            history=HistoryReader(router, hub, clock), catalog=StreamCatalog(router, clock), version="0",
        )  # fmt: skip
        for work in (membership.run(), router.run(), self.context.dispatcher.run(), hub.run(), self._follow()):
            self.spawn(work, vital=True)

    async def _follow(self) -> None:
        context = self.context
        while not context.hub.started:
            if not await context.router.ready(20.0):
                continue
            with suppress(CdrsError):
                epoch, link = context.router.epoch, context.router.any().link
                positions = await link.ends()
                recent = await latest(link, positions, context.settings.sse.warm_records)
                context.hub.start(epoch, positions, recent)
        await context.feeds.run(context.hub.vector.next)

    def _connect(self, member: Member) -> NodeLink:
        link: Any = Link(self, member)
        return link  # type: ignore[no-any-return]


class World:
    """See the module."""

    def __init__(self, loop: VirtualLoop, seed: int, *, keep_trace: bool = False) -> None:
        self.seed = seed
        self.loop = loop
        self.clock = VirtualClock(loop)
        self.random = random.Random(seed)
        self.plan = Plan.draw(self.random)
        self.weather = Weather.draw(self.random)
        self.max_age = random.Random(f"{seed}/retention").choice((0.0, 0.0, *MAX_AGES))
        """Seconds after which events are deleted; 0: never."""
        self.window = WINDOW
        self.telemetry = Telemetry(version="sim")
        self.verdict = Verdict()
        self.cut: set[tuple[str, str]] = set()
        self.cut_changed = asyncio.Event()
        self.node_ids = [f"n{n}" for n in range(self.plan.nodes)]
        self._digest = hashlib.blake2b(digest_size=16)
        self._kept: list[str] | None = [] if keep_trace else None
        self.log = Log(self, self.plan.partitions, decides_identity=self.plan.decides_identity)
        self.store = Store(self, self.log)
        self.registry = Registry(self)
        self.nodes: list[NodeProcess] = []
        self.gateways: list[GatewayProcess] = []
        self.is_healing = False

    def trace(self, *what: Any) -> None:
        """Everything that happens at a border goes into the run's hash."""
        line = f"{self.loop.now:.9f} {what!r}"
        self._digest.update(line.encode())
        if self._kept is not None:
            self._kept.append(line)

    @property
    def fingerprint(self) -> str:
        return self._digest.hexdigest()

    @property
    def lines(self) -> Sequence[str]:
        return self._kept or ()

    def node(self, member: Member) -> NodeProcess | None:
        for process in self.nodes:
            if process.id == member.id and str(process.incarnation) == member.incarnation and not process.is_dead:
                return process
        return None

    def some_gateway(self) -> GatewayProcess | None:
        alive = [gateway for gateway in self.gateways if not gateway.is_dead]
        return self.random.choice(alive) if alive else None

    # --- the run --------------------------------------------------------------------------------

    async def run(self) -> Verdict:
        """Everything from the first start to the verdict."""
        for node_id in self.node_ids:
            self._start(NodeProcess, self.nodes, node_id)
        for number in range(self.plan.gateways):
            self._start(GatewayProcess, self.gateways, f"g{number}")
        readers = [Reader(self, f"reader{n}") for n in range(self.plan.readers)]
        publishers = [Publisher(self, f"publisher{n}") for n in range(self.plan.publishers)]
        reading = [self.loop.create_task(reader.run()) for reader in readers]
        writing = [self.loop.create_task(publisher.run()) for publisher in publishers]
        writing.append(self.loop.create_task(self._create_wide()))
        nemesis = self.loop.create_task(self._nemesis())
        keeper = self.loop.create_task(self._keep_alive())
        await nemesis
        self._heal()
        try:
            await self._finish(writing, "a producer never got its receipts")
            await self._finish([self.loop.create_task(self._settled(readers))], "a reader or the store never caught up")
        finally:
            for task in (*reading, *writing, keeper):
                task.cancel()
            await asyncio.wait([*reading, *writing, keeper])
            for task in (*reading, *writing):
                if not task.cancelled() and task.exception() is not None:
                    self.verdict.add("crash", f"an actor died: {task.exception()!r}")
        self._judge([*readers, *publishers])
        return self.verdict

    def _start(self, kind: type[Any], among: list[Any], name: str, incarnation: int = 1) -> None:
        among[:] = [process for process in among if process.id != name]
        process = kind(self, name, incarnation)
        among.append(process)
        among.sort(key=lambda each: each.id)
        self.trace("start", process.name)
        process.start()

    async def _create_wide(self) -> None:
        """Somebody creates a spread stream while others post to it, perhaps before it has its first event."""
        if self.random.random() < 0.5 or self.plan.partitions < 2:
            return
        await asyncio.sleep(self.random.random() * 0.6)
        while True:
            gateway = self.some_gateway()
            if gateway is not None and gateway.context.router.is_known:
                question = ask(gateway.context.router, lambda link: link.create_stream(WIDE, spread=2))
                await asyncio.wait([work := gateway.spawn(question)])
                error = None if work.cancelled() else work.exception()
                if not work.cancelled() and (error is None or isinstance(error, StreamConflict)):
                    self.trace("created", error)
                    return
            await asyncio.sleep(0.1)

    async def _keep_alive(self) -> None:
        """The supervisor: whoever is dead is started again after a while."""
        while True:
            await asyncio.sleep(0.25)
            for kind, among in ((NodeProcess, self.nodes), (GatewayProcess, self.gateways)):
                for process in list(among):
                    if process.is_dead and (self.is_healing or self.random.random() < 0.4):
                        self._start(kind, among, process.id, process.incarnation + 1)  # type: ignore[arg-type]

    async def _finish(self, tasks: list[asyncio.Task[Any]], complaint: str) -> None:
        _, late = await asyncio.wait(tasks, timeout=PATIENCE)
        if late:
            self.verdict.add("stuck", complaint)
            for task in late:
                task.cancel()

    async def _settled(self, readers: list[Reader]) -> None:
        while not self._is_persisted() or not all(reader.is_done() for reader in readers):
            await asyncio.sleep(0.1)

    def _is_persisted(self) -> bool:
        return self.log.decides_identity or self.store.checkpoints == self.log.ends

    # --- faults ---------------------------------------------------------------------------------

    async def _nemesis(self) -> None:
        for at, name in self.plan.faults:
            await asyncio.sleep(max(at - self.loop.now, 0))
            self.loop.create_task(self._inject(name))
        await asyncio.sleep(self.random.random() * 2.0)

    async def _inject(self, name: str) -> None:
        kind, _, what = name.partition(" ")
        length = self.random.choice((0.05, 0.5, 2.5, 6.0)) * self.random.random()
        self.trace("fault", name, length)
        processes: list[Any] = self.nodes if kind == "node" else self.gateways
        if what == "crash":
            self.random.choice(processes).crash()
        elif what == "pause":
            process = self.random.choice(processes)
            process.pause()
            await asyncio.sleep(length)
            process.resume()
        elif what == "blind":
            process = self.random.choice(processes)
            process.is_blind = True
            await asyncio.sleep(length)
            process.is_blind = False
            self.log.wake()
        elif what == "drain":
            await self._drain(self.random.choice(processes))
        elif what == "wipe":
            self.registry.set.clear()
            self.registry.map.clear()
        elif kind == "cut":
            pair = (self.random.choice(self.gateways).id, self.random.choice(self.nodes).id)
            self.cut.add(pair)
            await asyncio.sleep(length)
            self._join_again(pair)
        else:
            engine: Any = {"log": self.log, "store": self.store, "registry": self.registry}[kind]
            engine.is_away = True
            await asyncio.sleep(length)
            engine.is_away = False
        self.trace("fault over", name)

    async def _drain(self, process: Any) -> None:
        """What SIGTERM does."""
        process.is_draining = True
        if isinstance(process, NodeProcess):
            await asyncio.wait([process.spawn(process.node.drain(1.0))])
            if process.member is not None and not process.is_dead:
                self.registry.set.pop(process.member.key, None)
        else:
            context = process.context
            context.membership.draining = True
            context.begin_drain()
            await asyncio.wait([process.spawn(context.hub.drain(1.0))])
            await asyncio.wait([process.spawn(context.dispatcher.drained(1.0))])
        process.crash()

    def _join_again(self, pair: tuple[str, str]) -> None:
        self.cut.discard(pair)
        self.cut_changed.set()
        self.cut_changed = asyncio.Event()

    def _heal(self) -> None:
        self.trace("heal")
        self.is_healing = True
        self.weather.calm()
        for pair in sorted(self.cut):
            self._join_again(pair)
        self.log.is_away = self.store.is_away = self.registry.is_away = False
        for process in (*self.nodes, *self.gateways):
            process.resume()

    # --- the verdict ----------------------------------------------------------------------------

    def _judge(self, actors: Sequence[Any]) -> None:
        records = [record for actor in actors for record in actor.history.records]
        for partition in self.log.records:
            visible = self.log.visible(partition, WINDOW)
            epoch = str(self.log.epoch)
            records += [{"type": "store", "actor": "log", "t": 0, **_named(record, epoch)} for record in visible]
            self._check_store(partition, visible)
        found = check(records)
        for name, count in self.verdict.counts.items():
            found.counts[name] += count
        found.examples = [*self.verdict.examples, *found.examples]
        self.verdict = found
        self.trace("verdict", sorted(found.counts.items()), found.acknowledged, found.seen)

    def _check_store(self, partition: int, visible: Sequence[Any]) -> None:
        """Complete below the checkpoint, and the same as the log shows."""
        if self.log.decides_identity:
            return
        documents, checkpoint = self.store.documents[partition], self.store.checkpoints[partition]
        wanted = {record.offset: record for record in visible}
        for offset in range(checkpoint):
            if offset not in documents:
                self.verdict.add("lost", f"partition {partition}: no document at {offset}, checkpoint {checkpoint}")
            elif documents[offset] != wanted.get(offset):
                self.verdict.add("inconsistent", f"partition {partition}: the document at {offset} is not the log's")


def _named(record: Any, epoch: str) -> dict[str, Any]:
    from simulation.actors import payload_of  # noqa: PLC0415 -- a cycle otherwise

    stream, event_id, sha = payload_of(record.value)
    return {
        "stream": stream, "source": "/sim", "id": event_id, "sha": sha,
        "position": [epoch, record.partition, record.offset],
    }  # fmt: skip


@dataclass
class Outcome:
    """One schedule's end."""

    seed: int
    verdict: Verdict
    fingerprint: str
    seconds: float
    """Virtual ones."""
    lines: Sequence[str] = ()
    records: Sequence[dict[str, Any]] = ()


def run_seed(seed: int, *, keep_trace: bool = False) -> Outcome:
    """One schedule. The product's own log is silent meanwhile: it would tell of faults all the time."""
    worlds: list[World] = []

    async def main(loop: VirtualLoop) -> Verdict:
        worlds.append(World(loop, seed, keep_trace=keep_trace))
        return await worlds[0].run()

    logging.disable(logging.CRITICAL)
    try:
        verdict = simulate(seed, main)
    finally:
        logging.disable(logging.NOTSET)
    world = worlds[0]
    return Outcome(seed, verdict, world.fingerprint, world.loop.now, world.lines)
