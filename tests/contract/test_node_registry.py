"""`NodeRegistry`: a set of processes and a map of heartbeats."""

from __future__ import annotations

import asyncio

import pytest

from shared.ports import Beat, Member, NodeRegistry

Pair = tuple[NodeRegistry, NodeRegistry]


def member(name: str, incarnation: str = "i1") -> Member:
    return Member(name, incarnation, "node", f"http://{name}", "0.1.0", "zone", 2.0)


def beat(seq: int, state: str = "live") -> Beat:
    return Beat(seq, state, 0.5, 1_000_000, 3, 1.5, 7, 11, 12)


@pytest.fixture
def one(registries: Pair) -> NodeRegistry:
    return registries[0]


@pytest.fixture
def other(registries: Pair) -> NodeRegistry:
    return registries[1]


async def test_new_it_is_empty(one: NodeRegistry) -> None:
    assert list(await one.members()) == []
    assert dict(await one.beats()) == {}


async def test_who_joins_is_seen_by_all(one: NodeRegistry, other: NodeRegistry) -> None:
    await one.join(member("a"))
    await other.join(member("b"))
    for registry in (one, other):
        assert {m.key: m for m in await registry.members()} == {"a/i1": member("a"), "b/i1": member("b")}


async def test_joining_again_changes_nothing(one: NodeRegistry, other: NodeRegistry) -> None:
    await one.join(member("a"))
    await other.join(member("a"))
    assert list(await one.members()) == [member("a")]


async def test_incarnations_stand_beside_each_other(one: NodeRegistry) -> None:
    await one.join(member("a", "i1"))
    await one.join(member("a", "i2"))
    assert {m.incarnation for m in await one.members()} == {"i1", "i2"}


async def test_leaving_takes_the_heartbeat_along(one: NodeRegistry) -> None:
    for name in ("a", "b"):
        await one.join(member(name))
        await one.beat(member(name).key, beat(1))
    await one.leave(member("a"))
    await one.leave(member("a"))
    assert list(await one.members()) == [member("b")]
    assert dict(await one.beats()) == {"b/i1": beat(1)}


async def test_the_dead_are_reaped_by_others(one: NodeRegistry, other: NodeRegistry) -> None:
    await one.join(member("a"))
    await one.beat("a/i1", beat(1))
    await other.leave(member("a"))
    assert list(await one.members()) == []
    assert dict(await one.beats()) == {}


async def test_the_last_beat_counts(one: NodeRegistry, other: NodeRegistry) -> None:
    await one.beat("a/i1", beat(1))
    await one.beat("a/i1", beat(2, "draining"))
    answer = await other.beat("b/i1", beat(1))
    assert dict(answer) == dict(await other.beats()) == {"a/i1": beat(2, "draining"), "b/i1": beat(1)}


async def test_a_beat_needs_no_place_in_the_set(one: NodeRegistry) -> None:
    await one.beat("a/i1", beat(1))
    assert list(await one.members()) == []
    await one.join(member("b"))
    assert set(await one.beats()) == {"a/i1"}


async def test_a_silent_ones_beat_vanishes_and_its_item_stays(one: NodeRegistry, other: NodeRegistry) -> None:
    for name in ("silent", "alive"):
        await one.join(member(name))
        await one.beat(f"{name}/i1", beat(1))
    async with asyncio.timeout(20):
        seq = 1
        while "silent/i1" in await one.beats():
            seq += 1
            await other.beat("alive/i1", beat(seq))
            await asyncio.sleep(0.2)
    assert dict(await one.beats()) == {"alive/i1": beat(seq)}
    assert len(await one.members()) == 2


async def test_many_at_once(one: NodeRegistry, other: NodeRegistry) -> None:
    async def live(registry: NodeRegistry, name: str) -> None:
        await registry.join(member(name))
        for seq in range(1, 6):
            await registry.beat(f"{name}/i1", beat(seq))

    await asyncio.gather(*[live((one, other)[n % 2], f"n{n}") for n in range(20)])
    assert len(await one.members()) == 20
    assert dict(await other.beats()) == {f"n{n}/i1": beat(5) for n in range(20)}
