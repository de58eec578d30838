"""Routes: who serves which partition, and how nodes come, go and come back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from gateway_rig import Rig
from model_nodes import ModelNode, PaintedMembership, event, eventually, member

from gateway.routes import MOVE_INTERVAL, SETTLED_AFTER, RouteTable
from gateway.routing import Router
from shared.clock import SystemClock
from shared.detector import NodeState
from shared.errors import LinkBroken, Unavailable
from shared.ports import Member
from shared.position import Epoch
from shared.settings import Settings

LIVE, SUSPECT, DRAINING = NodeState.LIVE, NodeState.SUSPECT, NodeState.DRAINING


# --- the table, without a loop ---------------------------------------------------------------


@dataclass(eq=False)
class Spot:
    key: str
    member: Member


def spot(name: str, *, incarnation: str = "1", capacity: float = 1.0) -> Spot:
    of = member(name, incarnation=incarnation, capacity=capacity)
    return Spot(of.key, of)


A, B, C = spot("a"), spot("b"), spot("c")
PARTITIONS = 48


def firsts(table: RouteTable[Spot]) -> list[str]:
    return [table.ranked(partition)[0].member.id for partition in range(PARTITIONS)]


def test_every_node_is_ranked_and_work_is_spread() -> None:
    table: RouteTable[Spot] = RouteTable()
    assert table.update(0, PARTITIONS, [(A, LIVE, 0), (B, LIVE, 0), (C, LIVE, 0)]) == (True, float("inf"))
    assert all(len(table.ranked(partition)) == 3 for partition in range(PARTITIONS))
    assert min(firsts(table).count(name) for name in "abc") >= 6


def test_a_node_with_more_capacity_gets_more() -> None:
    table: RouteTable[Spot] = RouteTable()
    table.update(0, PARTITIONS, [(A, LIVE, 0), (spot("big", capacity=8), LIVE, 0)])
    assert firsts(table).count("big") > 36


def test_suspects_come_after_the_live_and_draining_ones_last() -> None:
    table: RouteTable[Spot] = RouteTable()
    table.update(0, PARTITIONS, [(A, DRAINING, None), (B, SUSPECT, None), (C, LIVE, 0)])
    assert {tuple(node.member.id for node in table.ranked(p)) for p in range(PARTITIONS)} == {("c", "b", "a")}


def test_a_node_that_is_gone_loses_its_partitions_at_once_and_only_those_move() -> None:
    table: RouteTable[Spot] = RouteTable()
    table.update(0, PARTITIONS, [(A, LIVE, 0), (B, LIVE, 0), (C, LIVE, 0)])
    before = firsts(table)
    table.update(0.1, PARTITIONS, [(A, LIVE, 0), (C, LIVE, 0)])
    moved = [old for old, new in zip(before, firsts(table), strict=True) if old != new]
    assert set(moved) == {"b"}
    assert len(moved) == before.count("b")


@pytest.mark.parametrize("worse", [SUSPECT, DRAINING])
def test_a_suspect_or_draining_node_loses_its_partitions_at_once(worse: NodeState) -> None:
    table: RouteTable[Spot] = RouteTable()
    table.update(0, PARTITIONS, [(A, LIVE, 0), (B, LIVE, 0)])
    table.update(0.1, PARTITIONS, [(A, worse, None), (B, LIVE, 0)])
    assert set(firsts(table)) == {"b"}


def test_a_node_that_joins_takes_its_partitions_after_it_has_settled() -> None:
    table: RouteTable[Spot] = RouteTable()
    table.update(0, PARTITIONS, [(A, LIVE, 0)])
    changed, due = table.update(10, PARTITIONS, [(A, LIVE, 0), (B, LIVE, 10)])
    assert changed
    assert due == SETTLED_AFTER
    assert set(firsts(table)) == {"a"}
    assert all(len(table.ranked(partition)) == 2 for partition in range(PARTITIONS)), "it is next in rank at once"
    table.update(10 + SETTLED_AFTER, PARTITIONS, [(A, LIVE, 0), (B, LIVE, 10)])
    assert set(firsts(table)) == {"a", "b"}


def test_a_partition_moves_at_most_every_two_seconds_while_its_node_is_there() -> None:
    table: RouteTable[Spot] = RouteTable()
    both, settled = [(A, LIVE, 0.0), (B, LIVE, 0.0)], SETTLED_AFTER
    table.update(0, PARTITIONS, both)
    wish = firsts(table)
    table.update(1, PARTITIONS, [(A, LIVE, 0)])  # b breaks: moved at 1
    _, due = table.update(1 + settled, PARTITIONS, [(A, LIVE, 0), (B, LIVE, 1.0)])
    assert set(firsts(table)) == {"a"}
    assert due == pytest.approx(MOVE_INTERVAL - settled)
    table.update(1 + MOVE_INTERVAL, PARTITIONS, [(A, LIVE, 0), (B, LIVE, 1.0)])
    assert firsts(table) == wish


def test_a_restarted_node_gets_its_partitions_back_under_a_new_incarnation() -> None:
    table: RouteTable[Spot] = RouteTable()
    table.update(0, PARTITIONS, [(A, LIVE, 0), (B, LIVE, 0)])
    wish = firsts(table)
    table.update(1, PARTITIONS, [(A, LIVE, 0)])
    again = spot("b", incarnation="2")
    table.update(5, PARTITIONS, [(A, LIVE, 0), (again, LIVE, 2)])
    assert firsts(table) == wish


def test_two_incarnations_at_once_are_both_ranked() -> None:
    table: RouteTable[Spot] = RouteTable()
    table.update(0, 1, [(A, LIVE, 0), (spot("a", incarnation="2"), LIVE, 0)])
    assert sorted(node.key for node in table.ranked(0)) == ["a/1", "a/2"]


def test_a_strained_node_gives_its_partitions_away_at_once_and_gets_them_back_with_patience() -> None:
    table: RouteTable[Spot] = RouteTable()
    nodes = [(A, LIVE, 0.0), (B, LIVE, 0.0), (C, SUSPECT, None)]
    table.update(0, PARTITIONS, nodes)
    before = firsts(table)
    mine = [partition for partition, name in enumerate(before) if name == "a"]
    table.update(10, PARTITIONS, nodes, {A.key: mine[:2]})
    assert [firsts(table)[partition] for partition in mine[:3]] == ["b", "b", "a"]
    assert [spot.member.id for spot in table.ranked(mine[0])] == ["b", "a", "c"], "before those that may be dead"
    assert table.update(10.5, PARTITIONS, nodes) == (False, MOVE_INTERVAL - 0.5)
    table.update(10 + MOVE_INTERVAL, PARTITIONS, nodes)
    assert firsts(table) == before


def test_where_all_are_strained_nothing_moves() -> None:
    table: RouteTable[Spot] = RouteTable()
    nodes = [(A, LIVE, 0.0), (B, LIVE, 0.0)]
    table.update(0, PARTITIONS, nodes)
    everything = dict.fromkeys((A.key, B.key), range(PARTITIONS))
    assert table.update(10, PARTITIONS, nodes, everything)[0] is False


def test_an_unchanged_table_says_so() -> None:
    table: RouteTable[Spot] = RouteTable()
    table.update(0, PARTITIONS, [(A, LIVE, 0)])
    assert table.update(1, PARTITIONS, [(A, LIVE, 0)]) == (False, float("inf"))


# --- the router --------------------------------------------------------------------------------


async def test_the_router_learns_the_log_from_the_first_node_it_reaches() -> None:
    rig = Rig()
    with pytest.raises(Unavailable):
        _ = rig.router.epoch
    with pytest.raises(Unavailable):
        rig.router.any()
    assert not rig.router.is_ready
    async with rig.running():
        assert await rig.router.ready(5)
        assert (rig.router.epoch, rig.router.partitions) == (rig.log.epoch, 2)
        assert {handle.member.id for handle in rig.router.ranked(0)} == {"a", "b", "c"}
        assert rig.router.any() is rig.router.any()


async def test_ready_gives_up_in_time() -> None:
    rig = Rig()
    assert not await rig.router.ready(0.01)


async def test_a_seeded_node_is_reached_without_the_registry() -> None:
    rig = Rig()
    local = rig.nodes["a/1"]
    quiet = PaintedMembership()
    router = Router(quiet, Settings(), SystemClock(), lambda of: rig.nodes[of.key].link())
    router.seed(local.member)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(router.run())
        assert await router.ready(5)
        quiet.paint(local.member)
        for _ in range(5):  # the router takes notice
            await asyncio.sleep(0)
        quiet.erase(local.member)
        await eventually(lambda: not router.is_ready)
        running.cancel()


async def test_only_nodes_are_routed_to() -> None:
    rig = Rig("a")
    rig.membership.paint(member("g", role="gateway"))
    async with rig.running():
        assert [handle.key for handle in rig.router.handles()] == ["a/1"]


async def test_a_broken_link_is_out_at_once_and_back_by_a_later_beat_and_an_answer() -> None:
    rig = Rig()
    async with rig.running():
        node, before = rig.best(), rig.router.ranked(0)
        handle = before[0]
        beat = rig.membership.picture.members[handle.key].beat
        assert beat is not None
        rig.router.broken(handle)
        assert rig.router.ranked(0) == before[1:]
        assert rig.membership.broken == [handle.key]
        rig.router.broken(handle)
        assert rig.membership.broken == [handle.key], "idempotent"
        node.is_reachable = False
        rig.membership.paint(node.member, NodeState.SUSPECT, seq=beat.seq)
        await asyncio.sleep(0.05)
        assert len(rig.router.ranked(0)) == 2, "no later beat, no way back"
        rig.membership.paint(node.member)
        await eventually(lambda: len(rig.membership.broken) > 1)
        assert len(rig.router.ranked(0)) == 2, "it beats but does not answer"
        node.is_reachable = True
        await eventually(lambda: len(rig.router.ranked(0)) == 3)
        assert rig.router.ranked(0)[0] is not handle
        assert handle.gone


async def test_while_the_registry_is_away_an_answer_is_enough() -> None:
    rig = Rig()
    async with rig.running():
        rig.membership.registry = "stale"
        rig.membership.paint(rig.best().member)
        await asyncio.sleep(0)
        rig.router.broken(rig.router.ranked(0)[0])
        assert len(rig.router.ranked(0)) == 2
        await eventually(lambda: len(rig.router.ranked(0)) == 3)


async def test_a_dead_node_is_out_and_what_runs_on_it_is_given_up() -> None:
    rig = Rig()
    async with rig.running():
        node, handle = rig.best(), rig.router.ranked(0)[0]
        node.hangs = True

        async def use() -> None:
            async with handle.attempt(60):
                await handle.link.info()

        used = asyncio.create_task(use())
        await asyncio.sleep(0)
        rig.membership.paint(node.member, NodeState.DEAD)
        with pytest.raises(LinkBroken):
            await used
        with pytest.raises(LinkBroken):
            await use()
        assert handle not in rig.router.ranked(0)
        node.hangs = False
        rig.membership.paint(node.member)
        await eventually(lambda: len(rig.router.ranked(0)) == 3)


async def test_an_attempt_has_a_deadline_of_its_own() -> None:
    rig = Rig("a")
    async with rig.running():
        handle = rig.router.any()
        with pytest.raises(TimeoutError):
            async with handle.attempt(0.01):
                await asyncio.Event().wait()
        assert not handle.gone


async def test_a_node_that_says_it_serves_badly_comes_behind_the_others_until_it_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.routing.LOOK_INTERVAL", 0.01)
    monkeypatch.setattr("gateway.routes.MOVE_INTERVAL", 0.0)
    monkeypatch.setattr("gateway.routes.SETTLED_AFTER", 0.0)
    rig = Rig()
    async with rig.running():
        node, handle = rig.best(), rig.router.ranked(0)[0]
        node.strained = [0]
        await eventually(lambda: rig.best() is not node)
        assert not handle.gone, "it keeps its link, and what is under way there goes on"
        assert len(rig.router.ranked(0)) == 3
        await rig.dispatcher.submit([(0, event("1"))], timeout=20).wait()
        assert not node.handoffs
        node.strained = []
        await eventually(lambda: rig.best() is node)


async def test_a_node_that_leaves_is_out() -> None:
    rig = Rig()
    async with rig.running():
        gone = rig.best()
        rig.membership.erase(gone.member)
        await eventually(lambda: len(rig.router.ranked(0)) == 2)
        assert rig.best() is not gone


async def test_a_suspect_is_still_there_behind_the_live_ones() -> None:
    rig = Rig()
    async with rig.running():
        node = rig.best()
        rig.membership.paint(node.member, NodeState.SUSPECT)
        await eventually(lambda: rig.best() is not node)
        assert rig.router.ranked(0)[-1].key == node.member.key


async def test_an_unreachable_node_is_tried_until_it_answers() -> None:
    rig = Rig("a")
    late = ModelNode(rig.log, member("late"))
    late.is_reachable = False
    async with rig.running():
        rig.nodes[late.member.key] = late
        rig.membership.paint(late.member)
        await eventually(lambda: late.member.key in rig.membership.broken)
        late.is_reachable = True
        await eventually(lambda: len(rig.router.handles()) == 2)


async def test_a_node_that_hangs_while_it_is_asked_does_not_hold_up_the_others() -> None:
    rig = Rig("a")
    async with rig.running():
        stuck = ModelNode(rig.log, member("stuck"))
        stuck.hangs = True
        rig.nodes[stuck.member.key] = stuck
        rig.membership.paint(stuck.member)
        rig.add(member("d"))
        await eventually(lambda: len(rig.router.handles()) == 2)


async def test_another_process_at_a_members_address_is_not_routed_to() -> None:
    rig = Rig("a")
    async with rig.running():
        left_behind = member("b", incarnation="0")
        rig.nodes[left_behind.key] = rig.nodes["a/1"]
        rig.membership.paint(left_behind)
        await asyncio.sleep(0.05)
        assert [handle.key for handle in rig.router.handles()] == ["a/1"]


async def test_of_two_epochs_the_higher_ordinal_wins() -> None:
    rig = Rig("a", "b")
    rig.nodes["b/1"].epoch = Epoch(2, 99)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(rig.router.run())
        await eventually(lambda: rig.router.is_ready and rig.router.epoch.ordinal == 2)
        await eventually(lambda: [handle.key for handle in rig.router.handles()] == ["b/1"])
        running.cancel()


async def test_watchers_are_woken_by_changes_only() -> None:
    rig = Rig()
    async with rig.running():
        watch = rig.router.watch()
        assert not await watch.wait(0.01)
        rig.router.broken(rig.router.any())
        assert await watch.wait(1)
        assert not await watch.wait(0.01)
