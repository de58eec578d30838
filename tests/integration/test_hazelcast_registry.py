"""What the Hazelcast registry promises beyond the contract, on a cluster that stays whole."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hazelcast_engine import connected, found, new_prefix, shared_cluster
from model_nodes import eventually, member

from shared.backends.hazelcast.client import HazelcastClient
from shared.backends.hazelcast.cluster import address_text, parse_cluster
from shared.backends.hazelcast.registry import HazelcastRegistry, item_of, open_hazelcast_registry
from shared.clock import SystemClock
from shared.errors import Unavailable
from shared.membership import Load, Membership
from shared.ports import Beat, ChangeSource, Member
from shared.settings import RegistrySettings, Settings

SETTINGS = RegistrySettings(timeout=2)
BEAT = Beat(1, "live", 0.1, 5, 0, 0.5, 0, 0, 3)


@pytest.fixture
def url() -> str:
    return shared_cluster()


@pytest.fixture
def prefix() -> str:
    return new_prefix()


@pytest.fixture
async def registry(url: str, prefix: str) -> AsyncIterator[HazelcastRegistry]:
    async with connected(url, SETTINGS, prefix=prefix) as registry:
        yield registry


@asynccontextmanager
async def raw_client(url: str) -> AsyncIterator[Any]:
    """Somebody else's client."""
    cluster = parse_cluster(url)
    client = await HazelcastClient.create_and_start(
        cluster_name=cluster.name, cluster_members=[address_text(each) for each in cluster.members]
    )
    try:
        yield client
    finally:
        await client.shutdown()


class _Exploit:
    """What a pickle can do."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self._canary,)


async def test_the_texts_that_others_see(url: str, prefix: str, registry: HazelcastRegistry) -> None:
    me = Member("n1", "i1", "node", "http://127.0.0.1:1", "0.1.0", "", 2.0)
    await registry.join(me)
    await registry.beat(me.key, BEAT)
    async with raw_client(url) as client:
        (item,) = await (await client.get_set(f"{prefix}.members")).get_all()
        ((key, beat),) = await (await client.get_map(f"{prefix}.heartbeats")).entry_set()
    assert item == (
        '{"capacity":2.0,"id":"n1","incarnation":"i1","role":"node","url":"http://127.0.0.1:1","version":"0.1.0","zone":""}'
    )
    assert key == "n1/i1"
    assert json.loads(beat)["seq"] == 1


async def test_what_is_not_ours_is_passed_over_and_never_unpickled(
    url: str, prefix: str, registry: HazelcastRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await registry.join(member("a"))
    await registry.beat("a/1", BEAT)
    canary = tmp_path / "canary"
    async with raw_client(url) as client:
        theirs, map_of_theirs = await client.get_set(f"{prefix}.members"), await client.get_map(f"{prefix}.heartbeats")
        for item in (_Exploit(canary), 7, bytearray(b"\xff"), "{", '{"id":"x"}', "[]", "", ["a"]):
            await theirs.add(item)
            await map_of_theirs.set(f"key {item!r}"[:40], item, 60)
        await map_of_theirs.set(7, "{}", 60)
        await map_of_theirs.set(_Exploit(canary), "{}", 60)
    assert list(await registry.members()) == [member("a")]
    assert dict(await registry.beats()) == {"a/1": BEAT}
    assert not canary.exists()
    said = [record for record in caplog.records if "passed over" in record.message]
    assert said
    await registry.members()
    assert len([record for record in caplog.records if "passed over" in record.message]) == len(said), "once"


async def test_whoever_was_written_in_another_way_is_reaped_too(
    url: str, prefix: str, registry: HazelcastRegistry
) -> None:
    async with raw_client(url) as client:
        theirs = await client.get_set(f"{prefix}.members")
        await theirs.add(json.dumps(json.loads(item_of(member("a"))), indent=1))
        await registry.join(member("a"))
        assert list(await registry.members()) == [member("a")]
        await registry.leave(member("a"))
        assert await theirs.get_all() == []


async def test_a_wrong_cluster_name_is_said_once(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with open_hazelcast_registry(f"{url}-wrong", SETTINGS) as registry:
        await eventually(lambda: "refuses" in registry.detail)
        with pytest.raises(Unavailable, match=r"registry\.url"):
            await registry.members()
        assert f"another name than '{parse_cluster(url).name}-wrong'" in registry.detail
        rounds = registry._link.rounds
        await eventually(lambda: registry._link.rounds > rounds)
    said = [each for each in caplog.records if each.levelno >= logging.WARNING and each.name.startswith("shared.")]
    assert len(said) == 1


async def test_one_address_that_works_is_enough(url: str, prefix: str) -> None:
    cluster = parse_cluster(url)
    some = f"hazelcast://127.0.0.1:1,{address_text(cluster.members[-1])}/{cluster.name}"
    async with connected(some, SETTINGS, prefix=prefix) as registry:
        await registry.join(member("a"))


async def test_changes_of_the_set_are_told(registry: HazelcastRegistry, url: str, prefix: str) -> None:
    assert isinstance(registry, ChangeSource)
    told, ended = asyncio.Event(), asyncio.Event()
    registry.on_change(told.set)
    registry.on_change(ended.set)()
    async with connected(url, SETTINGS, prefix=prefix) as other:

        async def until_told() -> None:
            # A client hears the members that it is connected to: all of them after a second.
            n = 0
            while not told.is_set():
                await other.join(member(f"n{n}"))
                n += 1
                await asyncio.sleep(0.1)

        await asyncio.wait_for(until_told(), 20)
        await asyncio.sleep(0.1)
        told.clear()
        await other.leave(member("n0"))
        await asyncio.wait_for(told.wait(), 20)
    assert not ended.is_set()


async def test_who_joins_and_who_leaves_is_seen_before_the_next_beat(registry: HazelcastRegistry) -> None:
    settings = Settings(registry=RegistrySettings(beat_interval=10, timeout=2))
    membership = Membership(registry, settings, SystemClock(), member("a"), Load)
    task = asyncio.create_task(membership.run())
    try:
        inner: Any = registry._link.client()._client
        heard = inner._listener_service._active_registrations
        # Each member tells of its own part of the data only.
        await eventually(lambda: heard and all(len(each.connection_registrations) == 3 for each in heard.values()))
        await registry.join(member("b"))
        await eventually(lambda: "b/1" in membership.picture.members, timeout=5)
        await registry.leave(member("b"))
        await eventually(lambda: "b/1" not in membership.picture.members, timeout=5)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("way", ["shutdown", "silent", "tasks"])
async def test_a_client_that_dies_for_good_is_replaced(registry: HazelcastRegistry, way: str) -> None:
    await registry.join(member("a"))
    client = registry._link.client()
    inner: Any = client._client
    if way == "shutdown":
        await inner.shutdown()
    elif way == "silent":
        inner._invocation_service.invoke = lambda invocation: None
    else:
        for connection in list(inner._connection_manager.active_connections.values()):
            connection._proto._transport.abort()

    async def again() -> None:
        while registry._link._client in {client, None}:
            try:
                await registry.members()
            except Unavailable:
                await asyncio.sleep(0.01)
        await found(registry)

    await asyncio.wait_for(again(), 20)
    assert list(await registry.members()) == [member("a")]


async def test_replacing_leaves_no_task_and_no_socket(url: str, prefix: str) -> None:
    def ours() -> list[str]:
        return [repr(task) for task in asyncio.all_tasks() if "hazelcast" in repr(task.get_coro()).lower()]

    sockets = len(list(Path("/proc/self/fd").iterdir()))
    async with connected(url, SETTINGS, prefix=prefix) as registry:
        for _ in range(3):
            client = registry._link.client()
            client.lost.set()
            await eventually(lambda: registry._link._client not in {client, None})  # noqa: B023
    await eventually(lambda: not ours())
    await eventually(lambda: len(list(Path("/proc/self/fd").iterdir())) == sockets)


@pytest.mark.parametrize("jump", [60.0, -60.0])
async def test_a_jump_of_the_wall_clock_harms_nobody(
    url: str, prefix: str, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """The client measures silence on the wall clock: after a jump forward it may drop its connections, after one back
    it is blind to silence for as long."""
    async with connected(url, SETTINGS, prefix=prefix) as one, connected(url, SETTINGS, prefix=prefix) as two:
        pair = [Membership(each, Settings(), SystemClock(), member(n), Load) for each, n in ((one, "a"), (two, "b"))]
        tasks = [asyncio.create_task(each.run()) for each in pair]
        try:
            await eventually(lambda: all(_live(each) == {"a/1", "b/1"} for each in pair))
            real = time.time
            monkeypatch.setattr(time, "time", lambda: real() + jump)
            states: set[frozenset[str]] = set()
            seqs = [_seq(each) for each in pair]

            def gone_on() -> bool:
                states.update(frozenset(view.state for view in each.picture.members.values()) for each in pair)
                return all(_seq(each) > seq + 10 for each, seq in zip(pair, seqs, strict=True))

            await eventually(gone_on, timeout=20)
            assert "dead" not in {state for each in states for state in each}
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _live(membership: Membership) -> set[str]:
    return {key for key, view in membership.picture.members.items() if view.state == "live" and view.in_set}


def _seq(membership: Membership) -> int:
    """The other one's last beat."""
    other = next(view for key, view in membership.picture.members.items() if key != membership.me.key)
    return other.beat.seq if other.beat else 0
