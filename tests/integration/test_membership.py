"""Membership: processes that join, beat, fall silent, drain, leave and are cleaned up after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from model_nodes import ModelRegistry, eventually, member

from shared import membership
from shared.backends.embedded.registry import open_registry
from shared.clock import SystemClock
from shared.detector import NodeState
from shared.member_changes import MAX_CHANGES, Change, Subscription
from shared.membership import Load, Membership
from shared.ports import Beat, Member, NodeRegistry
from shared.settings import RegistrySettings, Settings

INTERVAL = 0.05
DEAD_AFTER = 0.4


def fast(**registry: float) -> Settings:
    defaults = Settings()
    values = {"beat_interval": INTERVAL, "dead_after": DEAD_AFTER, "timeout": 0.2, **registry}
    return defaults.model_copy(update={"registry": defaults.registry.model_copy(update=values)})


class Process:
    """One membership, and the task that runs it."""

    def __init__(self, registry: NodeRegistry, name: str, *, incarnation: str = "1") -> None:
        self.load = Load(in_flight=1, connections=2)
        self.told: list[tuple[NodeState, float]] = []
        self.membership = Membership(
            registry,
            fast(),
            SystemClock(),
            member(name, incarnation=incarnation),
            lambda: self.load,
            on_change=lambda state, silent: self.told.append((state, silent)),
        )
        self.changes = self.membership.subscribe(loads=False)
        self.task: asyncio.Task[None] | None = None

    @property
    def key(self) -> str:
        return self.membership.me.key

    async def start(self) -> None:
        self.task = asyncio.create_task(self.membership.run())

    async def stop(self) -> None:
        """In good order."""
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def freeze(self) -> None:
        """As SIGKILL: no beat any more, no farewell."""
        registry = self.membership._registry
        self.membership._registry = _Nowhere(registry)  # type: ignore[assignment]

    def states(self) -> dict[str, str]:
        return {view.member.id: str(view.state) for view in self.membership.picture.members.values()}

    def sees(self, **states: str) -> bool:
        return self.states() == states

    async def heard(self, subscription: Subscription | None = None) -> list[Change]:
        return await (subscription or self.changes).changes(0)


class _Nowhere(ModelRegistry):
    """Calls that never come back."""

    def __init__(self, was: NodeRegistry) -> None:
        super().__init__()
        self.was = was

    async def beat(self, key: str, beat: Beat) -> Mapping[str, Beat]:
        await asyncio.sleep(3600)
        return {}

    async def leave(self, of: Member) -> None:
        return


@asynccontextmanager
async def running(registry: NodeRegistry, *names: str) -> AsyncIterator[Sequence[Process]]:
    processes = [Process(registry, name) for name in names]
    for process in processes:
        await process.start()
    try:
        await eventually(lambda: all(process.membership.picture.registry == "ok" for process in processes))
        await eventually(lambda: all(process.sees(**dict.fromkeys(names, "live")) for process in processes))
        yield processes
    finally:
        for process in processes:
            await process.stop()


@pytest.fixture
def registry() -> ModelRegistry:
    """One that can be made to fail."""
    return ModelRegistry()


@pytest.fixture(params=["model", "embedded"])
async def any_registry(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[NodeRegistry]:
    if request.param == "model":
        yield ModelRegistry()
    else:
        async with open_registry(tmp_path, RegistrySettings()) as registry:
            yield registry


def _seq(process: Process, key: str) -> int:
    beat = process.membership.picture.members[key].beat
    return beat.seq if beat is not None else 0


async def keys(registry: NodeRegistry) -> set[str]:
    return {of.key for of in await registry.members()}


async def test_processes_find_each_other_and_see_their_loads(any_registry: NodeRegistry) -> None:
    async with running(any_registry, "a", "b", "c") as (a, b, _):
        b.load = Load(in_flight=7, ewma_ms=1.5, lag_records=3, connections=9, partitions=12)
        await eventually(lambda: (view := a.membership.picture.members["b/1"]).beat and view.beat.in_flight == 7)
        view = a.membership.picture.members["b/1"]
        assert view.beat is not None
        assert (view.beat.lag_records, view.beat.connections, view.beat.partitions) == (3, 9, 12)
        assert view.beat.memory_bytes > 1_000_000
        assert view.in_set
        assert view.in_heartbeats
        assert view.age_ms < 5000
        assert a.membership.picture.registry == "ok"
        assert a.membership.picture.as_of_ms > 0


async def test_a_killed_process_is_suspect_then_dead_then_reaped(any_registry: NodeRegistry) -> None:
    async with running(any_registry, "a", "b", "c") as (a, b, c):
        await a.heard()
        c.freeze()
        seen: list[Change] = []

        async def reaped() -> None:
            while Change("leave", "c/1") not in seen:
                seen.extend(await a.changes.changes(1))

        await asyncio.wait_for(reaped(), 30)
        assert [change.kind for change in seen if change.key == "c/1"] == ["suspect", "dead", "leave"]
        silent = {state: seconds for state, seconds in a.told if state in {NodeState.SUSPECT, NodeState.DEAD}}
        assert set(silent) == {NodeState.SUSPECT, NodeState.DEAD}
        assert 2 * INTERVAL <= silent[NodeState.SUSPECT] < silent[NodeState.DEAD]
        assert silent[NodeState.DEAD] >= DEAD_AFTER - INTERVAL
        assert a.sees(a="live", b="live")
        await eventually(lambda: b.sees(a="live", b="live"))
        assert await keys(any_registry) == {"a/1", "b/1"}


async def test_a_process_that_stops_in_good_order_leaves_at_once(any_registry: NodeRegistry) -> None:
    async with running(any_registry, "a", "b") as (a, b):
        await a.heard()
        b.membership.draining = True
        await eventually(lambda: a.sees(a="live", b="draining"))
        assert await a.heard() == [Change("drain", "b/1")]
        await b.stop()
        assert await keys(any_registry) == {"a/1"}
        await eventually(lambda: a.sees(a="live"))
        assert await a.heard() == [Change("leave", "b/1")]


async def test_leaving_is_bounded_when_the_registry_hangs(registry: ModelRegistry) -> None:
    async with running(registry, "a") as (a,):

        async def hang(of: Member) -> None:
            await asyncio.sleep(3600)

        registry.leave = hang  # type: ignore[method-assign]
        await asyncio.wait_for(a.stop(), 5)


async def test_a_second_cancellation_does_not_stop_the_farewell(registry: ModelRegistry) -> None:
    async with running(registry, "a") as (a,):
        leave, left = registry.leave, asyncio.Event()

        async def slow(of: Member) -> None:
            await asyncio.sleep(0.05)
            await leave(of)
            left.set()

        registry.leave = slow  # type: ignore[method-assign]
        assert a.task is not None
        a.task.cancel()
        await asyncio.sleep(0.01)
        a.task.cancel()
        await asyncio.gather(a.task, return_exceptions=True)
        assert left.is_set()


async def test_while_the_registry_is_away_the_last_picture_holds(registry: ModelRegistry) -> None:
    async with running(registry, "a", "b") as (a, _):
        registry.is_away = True
        await eventually(lambda: a.membership.picture.registry == "stale")
        calls = registry.calls
        await eventually(lambda: registry.calls > calls + 30)
        assert a.sees(a="live", b="live")
        registry.is_away = False
        await eventually(lambda: a.membership.picture.registry == "ok")
        assert a.sees(a="live", b="live")
        assert [change.kind for change in await a.heard()].count("registry") == 1, "coalesced"


async def test_a_registry_that_comes_back_empty_is_filled_again_and_nobody_is_said_to_have_left(
    registry: ModelRegistry,
) -> None:
    async with running(registry, "a", "b", "c") as (a, _b, _c):
        await a.heard()
        registry.wipe()
        await eventually(lambda: len(registry.set) == 3 and len(registry.map) == 3)
        await eventually(lambda: all(view.in_set for view in a.membership.picture.members.values()))
        kinds = {change.kind for change in await a.heard()}
        assert not kinds & {"leave", "dead", "join"}


async def test_who_is_missing_after_the_registry_lost_everything_is_judged_by_silence(registry: ModelRegistry) -> None:
    async with running(registry, "a", "b", "c") as (a, _, c):
        await a.heard()
        c.freeze()
        registry.wipe()
        seen: list[Change] = []
        while Change("leave", "c/1") not in seen:
            seen += await a.changes.changes(1)
        assert [change.kind for change in seen if change.key == "c/1"] == ["suspect", "dead", "leave"]


async def test_a_new_incarnation_joins_beside_its_dead_predecessor(any_registry: NodeRegistry) -> None:
    async with running(any_registry, "a", "b", "c") as (a, b, _):
        b.freeze()
        again = Process(any_registry, "b", incarnation="2")
        await again.start()
        members = a.membership
        await eventually(lambda: members.picture.members.get("b/2") and members._state("b/2") is NodeState.LIVE)
        await eventually(lambda: members._state("b/1") is NodeState.DEAD)
        await again.stop()


async def test_what_a_crash_left_in_the_set_is_suspect_then_dead_never_live(any_registry: NodeRegistry) -> None:
    await any_registry.join(member("ghost"))
    a = Process(any_registry, "a")
    await a.start()
    await eventually(lambda: a.sees(a="live", ghost="suspect"))
    await eventually(lambda: a.sees(a="live", ghost="dead"))
    kinds = [change.kind for change in await a.heard() if change.key == "ghost/1"]
    assert kinds == ["join", "dead"]
    await a.stop()


async def test_a_broken_link_makes_a_suspect_until_the_next_beat(registry: ModelRegistry) -> None:
    async with running(registry, "a", "b", "c") as (a, _b, _c):
        await a.heard()
        a.membership.break_link("b/1")
        assert a.sees(a="live", b="suspect", c="live")
        assert await a.heard() == [Change("suspect", "b/1")]
        await eventually(lambda: a.sees(a="live", b="live", c="live"))
        assert await a.heard() == [Change("load", "b/1")], "told even to those who do not want loads"
        a.membership.break_link("nobody/0")


async def test_a_beat_without_a_member_is_shown_but_has_no_role(registry: ModelRegistry) -> None:
    async with running(registry, "a", "b") as (a, _):
        beat = registry.map["b/1"]
        registry.map["only/beats"] = beat
        await eventually(lambda: "only/beats" in a.membership.picture.members)
        view = a.membership.picture.members["only/beats"]
        assert (view.member.role, view.in_set, view.in_heartbeats) == ("", False, True)
        await a.heard()
        registry.set["only/beats"] = Member("only", "beats", "node", "http://x", "1", "", 1.0)
        await eventually(lambda: a.membership.picture.members["only/beats"].member.role == "node")
        assert Change("join", "only/beats") in await a.heard()


async def test_loads_are_told_to_those_who_want_them_and_unchanged_ones_to_nobody(any_registry: NodeRegistry) -> None:
    async with running(any_registry, "a", "b") as (a, _):
        with a.membership.subscribe() as everything:
            told: list[Change] = []
            async with asyncio.timeout(5):
                while Change("load", "b/1") not in told:
                    told += await everything.changes(5)
        await a.heard()
        before = _seq(a, "b/1")
        await eventually(lambda: _seq(a, "b/1") > before + 5)
        assert await a.heard() == []


async def test_a_subscriber_that_does_not_read_holds_a_bounded_number_of_changes() -> None:
    subscription = Subscription(loads=True)
    for i in range(MAX_CHANGES + 10):
        subscription.put(Change("join", str(i)))
        subscription.put(Change("join", str(i)))
    changes = await subscription.changes(0)
    assert changes[0] == Change("reset", "")
    assert len(changes) <= MAX_CHANGES
    assert await subscription.changes(0) == []
    subscription.close()
    subscription.put(Change("join", "late"))
    assert await subscription.changes(0) == []


async def test_a_wait_is_woken_once_for_what_happened(registry: ModelRegistry) -> None:
    subscription = Subscription(loads=True)
    subscription.put(Change("join", "x"))
    await subscription.wait(10)
    await asyncio.wait_for(subscription.wait(0.01), 5)
    assert await subscription.changes(0) == [Change("join", "x")]


@pytest.fixture
def soon_alone(monkeypatch: pytest.MonkeyPatch) -> float:
    """The interval of who has been alone for long enough."""
    monkeypatch.setattr(membership, "ALONE_AFTER", 4 * INTERVAL)
    return membership.ALONE_FACTOR * INTERVAL


async def test_alone_it_beats_half_as_often_and_who_comes_never_suspects_it(
    any_registry: NodeRegistry, soon_alone: float
) -> None:
    async with running(any_registry, "first") as (first,):
        await eventually(lambda: first.membership._pace == soon_alone)
        second = Process(any_registry, "second")
        await second.start()
        await eventually(lambda: second.sees(first="live", second="live"))
        await eventually(lambda: first.sees(first="live", second="live"))
        assert first.membership._pace == INTERVAL
        reached = _seq(second, first.key) + 10
        await eventually(lambda: _seq(second, first.key) >= reached)
        assert not [change for change in await second.heard() if change.kind == "suspect"]
        await second.stop()
        await eventually(lambda: first.membership._pace == soon_alone)


async def test_two_of_one_process_are_alone(any_registry: NodeRegistry, soon_alone: float) -> None:
    async with running(any_registry, "gateway") as (gateway,):
        load = Load()
        node = Membership(
            any_registry, fast(), SystemClock(), member("node"), lambda: load, watches=False, beside=gateway.membership
        )
        beating = asyncio.create_task(node.run())
        await eventually(lambda: gateway.sees(gateway="live", node="live"))
        await eventually(lambda: node._pace == gateway.membership._pace == soon_alone)
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
