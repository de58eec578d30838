"""How the link replaces clients: whom it gives up, when, and where it goes from a cluster that has fallen apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self, cast

import pytest
from model_nodes import eventually

from shared.backends.hazelcast import link
from shared.backends.hazelcast.client import SILENCE, Client, NotTakenInError
from shared.backends.hazelcast.cluster import parse_cluster
from shared.backends.hazelcast.link import MAX_SILENCE, ClusterLink
from shared.errors import Unavailable

CLUSTER = parse_cluster("hazelcast://h3,h1,h2/c")


class Part:
    """Members that see each other."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = frozenset[object](hosts)


class FakeClient(Client):
    """A client of the part that its address belongs to at that time, as `World` says."""

    def __init__(self, part: Part) -> None:
        super().__init__(cast(Any, None), cast(Any, None), cast(Any, None), asyncio.Event())
        self.part = part
        self.closed = 0

    def fellows(self) -> frozenset[object]:
        return self.part.hosts

    async def close(self) -> None:
        self.closed += 1


class World:
    """Which part each address leads to; addresses that lead nowhere take nobody in."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.parts = dict(parts)
        self.started: list[FakeClient] = []
        self.asked: list[str] = []

    async def start(self, cluster: object, member: tuple[str, int], changed: Callable[[], None]) -> Client:
        self.asked.append(member[0])
        await asyncio.sleep(0)
        part = self.parts.get(member[0])
        if part is None:
            raise NotTakenInError("accepts connections but does not answer")
        self.started.append(FakeClient(part))
        return self.started[-1]

    @asynccontextmanager
    async def linked(self, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[ClusterLink]:
        async def reachable(member: tuple[str, int]) -> str:
            return ""

        monkeypatch.setattr(link, "why_unreachable", reachable)
        monkeypatch.setattr(Client, "start", self.start)
        for name in ("MIN_PAUSE", "MAX_PAUSE", "HEAD_START", "POLL", "SETTLE", "REGROUP", "MAX_REGROUP", "LINGER"):
            monkeypatch.setattr(link, name, 0.002)
        found = ClusterLink(CLUSTER)
        task = asyncio.create_task(found.run())
        try:
            await eventually(lambda: found._client is not None)
            yield found
        finally:
            task.cancel()
            await asyncio.wait({task})
        assert all(each.closed for each in self.started), "none is left behind"
        assert len(asyncio.all_tasks()) == 1

    @property
    def held(self) -> FakeClient:
        """The one that is still open, where there is one only."""
        (client,) = [each for each in self.started if not each.closed]
        return client


async def test_all_go_to_the_part_of_the_first_address(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World({"h2": Part("h2")})
    async with world.linked(monkeypatch) as found:
        world.parts["h1"] = small = Part("h1")
        await eventually(lambda: found.moves == 1)
        assert cast(FakeClient, found.client()).part is small
        await eventually(lambda: world.started[0].closed > 0)


async def test_but_to_the_part_that_has_most_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World({"h2": Part("h2")})
    async with world.linked(monkeypatch) as found:
        world.parts |= {"h1": Part("h1"), "h3": (large := Part("h3", "h4"))}
        await eventually(lambda: found.moves > 0 and cast(FakeClient, found.client()).part is large)
        assert found.moves <= 2


async def test_nobody_leaves_the_part_that_has_most(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World({"h3": Part("h2", "h3")})
    async with world.linked(monkeypatch) as found:
        world.parts["h1"] = Part("h1")
        fellows, polls = world.held.fellows, 0

        def count() -> frozenset[object]:
            nonlocal polls
            polls += 1
            return fellows()

        monkeypatch.setattr(world.held, "fellows", count)
        await eventually(lambda: polls >= 5)
        assert found.moves == 0


async def test_one_that_answers_nobody_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World({"h3": Part("h3")})
    async with world.linked(monkeypatch) as found:
        world.parts["h2"] = Part("h2")
        await eventually(lambda: found.moves == 1)
        assert cast(FakeClient, found.client()).part.hosts == {"h2"}
        asked = len(world.asked)
        await eventually(lambda: len(world.asked) >= asked + 4)
        assert found.moves == 1, "it stays"


async def test_a_client_of_the_right_part_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part("h1")
    world = World({"h1": part})
    async with world.linked(monkeypatch) as found:
        held = found.client()
        world.parts |= {"h2": Part("h2"), "h3": Part("h3")}
        await eventually(lambda: world.asked[-6:] == ["h1", "h2", "h3"] * 2)
        assert found.client() is held
        assert found.moves == 0


async def test_nobody_looks_while_the_cluster_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(dict.fromkeys(("h1", "h2", "h3"), Part("h1", "h2", "h3")))
    async with world.linked(monkeypatch) as found:
        looks = 0
        fellows = world.held.fellows

        def count() -> frozenset[object]:
            nonlocal looks
            looks += 1
            return fellows()

        monkeypatch.setattr(world.held, "fellows", count)
        asked = len(world.asked)
        await eventually(lambda: looks >= 5)
        assert len(world.asked) == asked
        assert found.moves == 0


async def test_a_client_that_is_lost_during_a_look_is_replaced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World({"h3": Part("h3")})
    async with world.linked(monkeypatch) as found:
        looking, start = asyncio.Event(), world.start

        async def hang(cluster: object, member: tuple[str, int], changed: Callable[[], None]) -> Client:
            if member[0] == "h1":
                looking.set()
                await asyncio.Event().wait()
            return await start(cluster, member, changed)

        monkeypatch.setattr(Client, "start", hang)
        held = found.client()
        await asyncio.wait_for(looking.wait(), 20)
        held.lost.set()
        with pytest.raises(Unavailable):
            found.client()
        await eventually(lambda: found._client not in {held, None})


async def test_patience_grows_only_while_nobody_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(dict.fromkeys(("h1", "h2", "h3"), Part("h1", "h2", "h3")))
    async with world.linked(monkeypatch) as found:
        granted: list[float] = []
        for heard in (True, False, False, False, True, True):
            await eventually(lambda: found._client is not None and not found._client.lost.is_set())
            client = found.client()
            granted.append(client.patience)
            if heard:
                client.answered()
                assert client.patience == SILENCE, "it was for the start"
            client.lost.set()
            await eventually(lambda client=client: found._client is not client)  # type: ignore[misc]
        assert granted == [SILENCE, SILENCE, 2 * SILENCE, 4 * SILENCE, MAX_SILENCE, SILENCE]


class HandLoop:
    """Time for `Client.failed`."""

    def __init__(self) -> None:
        self.now = 100.0

    def time(self) -> float:
        return self.now

    @classmethod
    def put(cls, monkeypatch: pytest.MonkeyPatch) -> Self:
        loop = cls()
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
        return loop


def fail(client: Client, loop: HandLoop, seconds: float) -> None:
    since, loop.now = loop.now, loop.now + seconds
    client.failed(since)


def test_silence_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, client = HandLoop.put(monkeypatch), FakeClient(Part("h1"))
    fail(client, loop, 0.5)
    fail(client, loop, 0.5)
    assert not client.lost.is_set()
    fail(client, loop, 0.5)
    assert client.lost.is_set(), "not later than three calls of the usual timeout"


def test_an_answer_begins_it_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, client = HandLoop.put(monkeypatch), FakeClient(Part("h1"))
    for _ in range(10):
        fail(client, loop, 0.5)
        fail(client, loop, 0.5)
        client.answered()
    assert not client.lost.is_set()


def test_a_process_that_stood_still_gives_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls that were under way come back late, together."""
    loop, client = HandLoop.put(monkeypatch), FakeClient(Part("h1"))
    began = [loop.now, loop.now + 0.1, loop.now + 0.2]
    loop.now += 30
    for since in began:
        client.failed(since)
    assert not client.lost.is_set()
    client.answered()
    fail(client, loop, 0.5)
    assert not client.lost.is_set()
