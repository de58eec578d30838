"""Members that die, stop or come back empty, under three processes that watch each other. On a cluster of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from engine_set import EngineSet, expendable_set
from hazelcast_engine import connected, found, new_prefix
from model_nodes import eventually, member

from shared.backends.hazelcast.client import Client, NotTakenInError
from shared.backends.hazelcast.registry import HazelcastRegistry
from shared.clock import SystemClock
from shared.errors import Unavailable
from shared.member_changes import Change
from shared.membership import Load, Membership
from shared.settings import RegistrySettings, Settings

SETTINGS = RegistrySettings()
NAMES = ("a", "b", "c")
KEYS = {f"{name}/1" for name in NAMES}
REBUILT = 15.0
"""Seconds until the set is whole once all have found the cluster; 3 s are promised on a machine that is quiet."""

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def own_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineSet]:
    with expendable_set("hazelcast", tmp_path_factory.mktemp("hazelcast") / "set") as cluster:
        yield cluster


@pytest.fixture
def cluster(own_cluster: EngineSet) -> EngineSet:
    own_cluster.mend()
    return own_cluster


class Process:
    """One process: its own client, and its membership."""

    def __init__(self, registry: HazelcastRegistry, name: str) -> None:
        self.registry = registry
        self.membership = Membership(registry, Settings(), SystemClock(), member(name), Load)
        self.told = self.membership.subscribe(loads=False)
        self.kinds: set[tuple[str, str]] = set()

    def states(self) -> dict[str, str]:
        return {key: view.state.value for key, view in self.membership.picture.members.items()}

    def is_whole(self) -> bool:
        views = self.membership.picture.members.values()
        whole = all(view.in_set and (view.in_heartbeats or view.member == self.membership.me) for view in views)
        return whole and self.states() == dict.fromkeys(KEYS, "live") and self.membership.picture.registry == "ok"

    async def follow(self) -> None:
        while True:
            for change in await self.told.changes(1):
                self.kinds.add((change.kind, change.key))


async def all_whole(all_of_them: Sequence[Process], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not all(each.is_whole() for each in all_of_them):
        said = [(each.states(), each.membership.picture.registry, each.registry.detail) for each in all_of_them]
        assert time.monotonic() < deadline, said
        await asyncio.sleep(0.005)


@asynccontextmanager
async def processes(cluster: EngineSet) -> AsyncIterator[Sequence[Process]]:
    prefix = new_prefix()
    async with AsyncExitStack() as stack:
        found = [
            Process(await stack.enter_async_context(connected(cluster.url("hazelcast"), SETTINGS, prefix=prefix)), name)
            for name in NAMES
        ]
        tasks = [asyncio.create_task(work) for each in found for work in (each.membership.run(), each.follow())]
        try:
            await all_whole(found)
            for each in found:
                each.kinds.clear()
            yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def longest_call(registry: HazelcastRegistry, until: Callable[[], bool]) -> tuple[float, int]:
    """Seconds of the longest of many calls, and how many failed."""
    longest, failed = 0.0, 0
    while not until():
        for call in (registry.members, registry.beats):
            began = time.monotonic()
            try:
                await call()
            except Unavailable:
                failed += 1
            longest = max(longest, time.monotonic() - began)
        await asyncio.sleep(0.02)
    return longest, failed


def nobody_was_lost(all_of_them: Sequence[Process]) -> None:
    for each in all_of_them:
        assert not {kind for kind, _ in each.kinds} & {"leave", "dead"}, each.kinds


async def test_the_member_that_owns_the_set_is_killed(cluster: EngineSet, capsys: pytest.CaptureFixture[str]) -> None:
    async with processes(cluster) as all_of_them:
        inner: Any = all_of_them[0].registry._link.client()
        owner = inner._client.partition_service.get_partition_owner(inner.members._partition_id)
        port = inner._client._internal_cluster_service.get_member(owner).address.port
        began = time.monotonic()
        await cluster.run("kill", cluster.member_at(port))
        done = asyncio.Event()
        calls = asyncio.create_task(longest_call(all_of_them[1].registry, done.is_set))
        seqs = [_seqs(each) for each in all_of_them]
        await eventually(
            lambda: all(_seqs(each) > seq for each, seq in zip(all_of_them, seqs, strict=True)), timeout=20
        )
        healed = time.monotonic() - began
        await all_whole(all_of_them)
        done.set()
        longest, failed = await calls
        nobody_was_lost(all_of_them)
        assert longest < SETTINGS.timeout + 1
    with capsys.disabled():
        print(f"\n  owner killed: all heard again after {healed:.2f} s, longest call {longest:.2f} s, {failed} refused")


def _seqs(process: Process) -> list[int]:
    return [view.beat.seq if view.beat else 0 for view in process.membership.picture.members.values()]


async def test_the_whole_cluster_is_killed_and_comes_back_empty(
    cluster: EngineSet, capsys: pytest.CaptureFixture[str]
) -> None:
    async with processes(cluster) as all_of_them:
        await cluster.run("kill", "hazelcast")
        await eventually(lambda: all(each.membership.picture.registry == "stale" for each in all_of_them), timeout=20)
        back = asyncio.Event()
        calls = asyncio.create_task(longest_call(all_of_them[1].registry, back.is_set))
        for _ in range(20):
            assert all(each.states() == dict.fromkeys(KEYS, "live") for each in all_of_them), "the last picture holds"
            await asyncio.sleep(0.1)
        assert all("Connection refused" in each.registry.detail for each in all_of_them)
        start, ready = asyncio.create_task(cluster.run("start", "hazelcast")), list[float]()
        await asyncio.gather(*(found(each.registry, 60) for each in all_of_them))
        met = time.monotonic()
        start.add_done_callback(lambda _: ready.append(time.monotonic()))
        await all_whole(all_of_them)
        rebuilt = time.monotonic()
        await start
        await asyncio.sleep(0)
        back.set()
        longest, failed = await calls
        nobody_was_lost(all_of_them)
        assert failed
        assert longest < SETTINGS.timeout + 1
        assert rebuilt - met < REBUILT
    with capsys.disabled():
        after = f"{rebuilt - met:.2f} s after all found it, {rebuilt - ready[0]:.2f} s after it was whole"
        print(f"\n  cluster back empty: rebuilt {after}; longest call {longest:.2f} s")


@pytest.mark.slow
@pytest.mark.parametrize("how_many", [1, 3])
async def test_members_stop_and_go_on(cluster: EngineSet, capsys: pytest.CaptureFixture[str], how_many: int) -> None:
    """One of them is the oldest: the others must agree first on who leads them, and now and then lose each other."""
    async with processes(cluster) as all_of_them:
        inner: Any = all_of_them[0].registry._link.client()
        ports = [each.address.port for each in inner._client.cluster_service.get_members()]
        names = [cluster.member_at(port) for port in ports[:how_many]]
        done = asyncio.Event()
        calls = asyncio.create_task(longest_call(all_of_them[1].registry, done.is_set))
        began = time.monotonic()
        await cluster.run("pause", *names)
        if how_many == 3:
            await eventually(lambda: all(each.membership.picture.registry == "stale" for each in all_of_them))
            await asyncio.sleep(3)
            nobody_was_lost(all_of_them)
            began = time.monotonic()
            await cluster.run("resume", *names)
        seqs = [_seqs(each) for each in all_of_them]
        await eventually(
            lambda: all(
                each.is_whole() and all(new > old for new, old in zip(_seqs(each), seq, strict=True))
                for each, seq in zip(all_of_them, seqs, strict=True)
            ),
            timeout=60,
        )
        healed = time.monotonic() - began
        done.set()
        longest, failed = await calls
        assert longest < SETTINGS.timeout + 1
        lost = {kind for each in all_of_them for kind in each.kinds if kind[0] in {"leave", "dead"}}
        moves = sum(each.registry._link.moves for each in all_of_them)
    with capsys.disabled():
        told = f"longest call {longest:.2f} s, {failed} refused, lost {lost}, {moves} moves"
        print(f"\n  {how_many} stopped: {healed:.2f} s, {told}")


async def test_one_process_is_cut_off_and_comes_back(
    cluster: EngineSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its packets vanish, in both directions; the others see it die, it sees nobody die."""
    async with processes(cluster) as all_of_them:
        a, b, c = all_of_them
        start, is_cut = Client.start, True

        async def refuse(*arguments: Any) -> Client:
            if is_cut and arguments[2] == c.registry._link._has_changed:
                raise NotTakenInError("does not answer")
            return await start(*arguments)

        monkeypatch.setattr(Client, "start", refuse)
        inner: Any = c.registry._link.client()._client
        await eventually(lambda: len(inner._connection_manager.active_connections) == 3)
        for connection in inner._connection_manager.active_connections.values():
            connection._proto._transport.pause_reading()
            connection._proto._do_write = lambda: None
        began = time.monotonic()
        dead = {"a/1": "live", "b/1": "live", "c/1": "dead"}
        await eventually(lambda: a.states() == dead and b.states() == dead, timeout=20)
        seen = time.monotonic() - began
        await eventually(lambda: c.membership.picture.registry == "stale")
        assert c.states() == dict.fromkeys(KEYS, "live")
        is_cut = False
        began = time.monotonic()
        await all_whole(all_of_them)
        healed = time.monotonic() - began
        assert not {kind for kind, _ in c.kinds} & {"dead", "leave"}
        assert Change("dead", "c/1").kind in {kind for kind, key in a.kinds if key == "c/1"}
    with capsys.disabled():
        print(f"\n  one cut off: dead to the others after {seen:.2f} s, back after {healed:.2f} s")
