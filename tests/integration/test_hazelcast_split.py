"""A cluster that falls apart into one member and two, under four processes. On a cluster of its own, in networks of its
own; needs root. Only who watches the set is put to the test: no event depends on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hazelcast_engine import PartedCluster, connected, new_prefix, parted_cluster
from model_nodes import eventually, member

from shared.backends.hazelcast import client
from shared.backends.hazelcast.client import Config
from shared.backends.hazelcast.registry import HazelcastRegistry
from shared.clock import SystemClock
from shared.errors import Unavailable
from shared.membership import Load, Membership
from shared.settings import RegistrySettings, Settings

SETTINGS = RegistrySettings()
SMALL, LARGE = (1,), (2, 3)
PATIENCE = 90.0
"""Seconds for what takes 10 to 20: members miss each other after 6 s, and look for others each 5 s."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def own_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PartedCluster]:
    with parted_cluster(tmp_path_factory.mktemp("parted") / "set") as cluster:
        yield cluster


@pytest.fixture
async def cluster(own_cluster: PartedCluster) -> AsyncIterator[PartedCluster]:
    await own_cluster.agree(SMALL + LARGE)
    yield own_cluster
    own_cluster.heal(SMALL, LARGE)
    await own_cluster.agree(SMALL + LARGE, seconds=120)


class Process:
    """One process: its own client, and its membership."""

    def __init__(self, registry: HazelcastRegistry, name: str) -> None:
        self.registry = registry
        self.membership = Membership(registry, Settings(), SystemClock(), member(name), Load)

    def live(self) -> set[str]:
        return {view.member.id for view in self.membership.picture.members.values() if view.state == "live"}

    def is_whole(self, names: set[str]) -> bool:
        views = self.membership.picture.members.values()
        in_set = {view.member.id for view in views if view.in_set}
        return self.live() == names == in_set and self.membership.picture.registry == "ok"

    def seqs(self) -> dict[str, int]:
        """Of the others: what was heard of them last."""
        views = self.membership.picture.members.items()
        return {key: view.beat.seq for key, view in views if view.beat and key != self.membership.me.key}

    def side(self) -> frozenset[object]:
        try:
            return self.registry._link.client().fellows()
        except Unavailable:
            return frozenset()

    def said(self) -> str:
        picture = self.membership.picture
        states = {key: (view.state.value, view.in_set) for key, view in picture.members.items()}
        return f"{self.membership.me.key}: {states}, {picture.registry}, {self.registry.detail}"


async def until(condition: Callable[[], bool], all_of_them: Mapping[str, Process]) -> None:
    try:
        await eventually(condition, timeout=PATIENCE)
    except TimeoutError:
        pytest.fail("\n".join(each.said() for each in all_of_them.values()))


@asynccontextmanager
async def processes(urls: Mapping[str, str]) -> AsyncIterator[dict[str, Process]]:
    prefix = new_prefix()
    async with AsyncExitStack() as stack:
        found = {
            name: Process(await stack.enter_async_context(connected(url, SETTINGS, prefix=prefix)), name)
            for name, url in urls.items()
        }
        tasks = [asyncio.create_task(each.membership.run()) for each in found.values()]
        try:
            await whole(found)
            yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def whole(all_of_them: Mapping[str, Process]) -> None:
    """Everybody sees everybody, and hears them anew."""
    await until(lambda: all(each.is_whole(set(all_of_them)) for each in all_of_them.values()), all_of_them)
    await heard_anew(all_of_them)
    await until(lambda: all(each.is_whole(set(all_of_them)) for each in all_of_them.values()), all_of_them)


async def heard_anew(some: Mapping[str, Process]) -> None:
    """Each of these hears each other one of them."""
    before = {name: each.seqs() for name, each in some.items()}

    def is_heard(name: str) -> bool:
        now = some[name].seqs()
        keys = {each.membership.me.key for each in some.values()} - {some[name].membership.me.key}
        return all(now.get(key, 0) > before[name].get(key, 0) + 3 for key in keys)

    await until(lambda: all(map(is_heard, some)), some)


def sides(all_of_them: Mapping[str, Process]) -> dict[str, frozenset[object]]:
    """Which members each process is with."""
    return {name: each.side() for name, each in all_of_them.items()}


def mates(all_of_them: Mapping[str, Process]) -> dict[str, set[str]]:
    """Who is on the same side as each."""
    at = sides(all_of_them)
    return {name: {other for other in at if at[other] == at[name]} for name in at}


class Caller:
    """Calls one registry again and again."""

    def __init__(self, registry: HazelcastRegistry) -> None:
        self.registry = registry
        self.longest = 0.0
        self.answered = 0

    async def run(self) -> None:
        while True:
            for call in (self.registry.members, self.registry.beats):
                began = time.monotonic()
                try:
                    await call()
                    self.answered += 1
                except Unavailable:
                    pass
                self.longest = max(self.longest, time.monotonic() - began)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def called(all_of_them: Mapping[str, Process]) -> AsyncIterator[dict[str, Caller]]:
    """All are called all the time; no call may take longer than its timeout, however the members fare."""
    callers = {name: Caller(each.registry) for name, each in all_of_them.items()}
    tasks = [asyncio.create_task(each.run()) for each in callers.values()]
    try:
        yield callers
        assert max(each.longest for each in callers.values()) < SETTINGS.timeout + 3
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answered_anew(callers: Mapping[str, Caller]) -> None:
    before = {name: each.answered for name, each in callers.items()}
    await eventually(lambda: all(each.answered > before[name] + 5 for name, each in callers.items()), timeout=PATIENCE)


async def test_each_side_goes_on_and_they_find_each_other(
    cluster: PartedCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Processes that reach one side only: each is connected to the member that it came in by, and to no other."""
    configure = client._configuration

    def of_one_side(*arguments: Any) -> Config:
        configuration = configure(*arguments)
        configuration.smart_routing = False
        return configuration

    monkeypatch.setattr(client, "_configuration", of_one_side)
    small, large = cluster.url_of(SMALL), cluster.url_of(LARGE)
    async with (
        processes({"a": small, "b": small, "c": large, "d": large}) as all_of_them,
        called(all_of_them) as callers,
    ):
        cluster.cut(SMALL, LARGE)
        began = time.monotonic()
        await cluster.agree(SMALL, LARGE)
        await until(lambda: len(set(sides(all_of_them).values())) == 2, all_of_them)
        await until(
            lambda: {name: each.live() for name, each in all_of_them.items()} == mates(all_of_them), all_of_them
        )
        parted = time.monotonic() - began
        await answered_anew(callers)
        at = sides(all_of_them)
        for side in set(at.values()):
            await heard_anew({name: all_of_them[name] for name in at if at[name] == side})
        cluster.heal(SMALL, LARGE)
        began = time.monotonic()
        await cluster.agree(SMALL + LARGE)
        merged = time.monotonic() - began
        await whole(all_of_them)
        healed = time.monotonic() - began
        await answered_anew(callers)
        longest = max(each.longest for each in callers.values())
    with capsys.disabled():
        times = f"apart after {parted:.1f} s, merged {merged:.1f} s and whole {healed:.1f} s after it was mended"
        print(f"\n  split, each on its side: {times}; longest call {longest:.2f} s")


async def test_processes_that_reach_both_sides_gather_on_one(
    cluster: PartedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    async with processes(dict.fromkeys("abcd", cluster.url)) as all_of_them, called(all_of_them) as callers:
        cluster.cut(SMALL, LARGE)
        began = time.monotonic()
        await cluster.agree(SMALL, LARGE)
        apart = time.monotonic() - began
        await whole(all_of_them)
        gathered = time.monotonic() - began
        await answered_anew(callers)
        assert cluster.seen_by(1) == list(SMALL), "it is still cut"
        cluster.heal(SMALL, LARGE)
        began = time.monotonic()
        await cluster.agree(SMALL + LARGE)
        await whole(all_of_them)
        healed = time.monotonic() - began
        longest = max(each.longest for each in callers.values())
        moves = sum(each.registry._link.moves for each in all_of_them.values())
    with capsys.disabled():
        times = (
            f"apart after {apart:.1f} s, all see all after {gathered:.1f} s, whole {healed:.1f} s after it was mended"
        )
        print(f"\n  split, both sides in reach: {times}; {moves} moves, longest call {longest:.2f} s")
