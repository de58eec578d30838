"""Feeds: every record once and in order per partition, whatever happens to the nodes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from gateway_rig import Rig
from model_nodes import ModelNode, event, eventually, member

from gateway.feeds import TICK, FeedManager
from gateway.publishing import Pause
from shared.detector import NodeState
from shared.errors import StaleEpoch, Unavailable
from shared.position import Epoch
from shared.records import FeedBatch


class Sink:
    """Checks that the batches of a partition follow each other without gap or overlap."""

    def __init__(self, rig: Rig, start: int = 0) -> None:
        self.rig = rig
        self.next = dict.fromkeys(range(len(rig.log.records)), start)
        self.values: dict[int, list[str]] = {partition: [] for partition in self.next}
        self.batches = 0

    def __call__(self, batch: FeedBatch) -> None:
        assert batch.start == self.next[batch.partition]
        assert [record.offset for record in batch.records] == list(range(batch.start, batch.next))
        self.next[batch.partition] = batch.next
        self.values[batch.partition] += [record.value.decode() for record in batch.records]
        self.batches += 1

    @property
    def is_complete(self) -> bool:
        return all(values == self.rig.log.values(partition) for partition, values in self.values.items())


class Fed:
    """A rig whose feeds run into a sink."""

    def __init__(self, rig: Rig, *, silence: float | None = None) -> None:
        self.rig = rig
        self.sink = Sink(rig)
        self.feeds = FeedManager(rig.router, self.sink, silence=silence)

    def store(self, count: int, tag: str = "") -> None:
        for partition in self.sink.next:
            self.rig.log.append(partition, [event(f"{tag}{partition}/{i}") for i in range(count)])

    async def run(self) -> None:
        await self.feeds.run(dict(self.sink.next))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Fed]:
        async with self.rig.running(self.run):
            yield self

    async def complete(self) -> None:
        await eventually(lambda: self.sink.is_complete)


def feeding(rig: Rig) -> list[ModelNode]:
    return [node for node in rig.nodes.values() if node.open_feeds]


async def test_every_partition_is_followed_at_its_best_node_and_a_node_has_one_feed() -> None:
    fed = Fed(Rig(partitions=12))
    fed.store(3)
    async with fed.running():
        await fed.complete()
        fed.store(3, "more")
        await fed.complete()
        assert all(node.open_feeds <= 1 for node in fed.rig.nodes.values())
        followed = {p: node for node in feeding(fed.rig) for p in node.opened[-1]}
        assert followed == {partition: fed.rig.best(partition) for partition in range(12)}
        assert fed.feeds.next == fed.sink.next == dict.fromkeys(range(12), 6)
    assert not feeding(fed.rig)


async def test_it_starts_from_the_positions_given() -> None:
    fed = Fed(Rig())
    fed.store(5)
    fed.sink.next = {0: 5, 1: 3}
    async with fed.running():
        await eventually(lambda: fed.sink.next == {0: 5, 1: 5})
        assert fed.sink.values == {0: [], 1: ["1/3", "1/4"]}


async def test_a_broken_feed_goes_on_at_the_next_node_from_where_it_was() -> None:
    fed = Fed(Rig())
    fed.store(3)
    async with fed.running():
        await fed.complete()
        first, second = fed.rig.best(), fed.rig.others()[0]
        first.kill()
        await eventually(lambda: any(opened.get(0) == 3 for opened in second.opened))
        fed.store(3, "more")
        await fed.complete()
        assert first.member.key in fed.rig.membership.broken


async def test_a_dead_nodes_feed_moves_at_once() -> None:
    fed = Fed(Rig())
    async with fed.running():
        stuck = fed.rig.best()
        await eventually(lambda: stuck.open_feeds)
        stuck.hangs = True
        fed.store(3)
        fed.rig.membership.paint(stuck.member, NodeState.DEAD)
        await fed.complete()
        await eventually(lambda: not stuck.open_feeds)


async def test_a_silent_feed_counts_as_broken() -> None:
    fed = Fed(Rig(), silence=0.6)
    async with fed.running():
        stuck = fed.rig.best()
        await eventually(lambda: stuck.open_feeds)
        stuck.hangs = True
        fed.store(3)
        await fed.complete()
        assert stuck.member.key in fed.rig.membership.broken


async def test_a_feed_waits_for_the_sink_and_is_not_silent_meanwhile() -> None:
    rig = Rig("a")
    taken: list[FeedBatch] = []
    free = asyncio.Event()

    async def pause() -> None:
        await free.wait()

    def sink(batch: FeedBatch) -> Pause:
        taken.append(batch)
        return pause

    feeds = FeedManager(rig.router, sink, silence=0.1)
    async with rig.running(lambda: feeds.run({0: 0})):
        node = rig.best()
        rig.log.append(0, [event("1")])
        await eventually(lambda: taken)
        rig.log.append(0, [event("2")])
        await asyncio.sleep(2.5 * TICK)
        assert [batch.next for batch in taken] == [1]
        assert feeds.next == {0: 1}
        assert node.member.key not in rig.membership.broken, "the silence is the sink's"
        free.set()
        await eventually(lambda: feeds.next == {0: 2})


async def test_when_routes_change_the_new_feed_begins_before_the_old_one_ends() -> None:
    fed = Fed(Rig(partitions=12))
    async with fed.running():
        await eventually(lambda: len(feeding(fed.rig)) == 3)
        node, heirs = fed.rig.best(), fed.rig.others()
        gate = asyncio.Event()
        for heir in heirs:
            heir.feed_gate = gate
        fed.rig.membership.paint(node.member, NodeState.SUSPECT)
        await eventually(lambda: all(heir.open_feeds == 2 for heir in heirs))
        fed.store(3)
        await fed.complete()
        assert node.open_feeds == 1, "it carries on meanwhile"
        gate.set()
        await eventually(lambda: [heir.open_feeds for heir in (node, *heirs)] == [0, 1, 1])
        fed.store(3, "more")
        await fed.complete()


async def test_a_joining_node_gets_its_feed_without_a_hole_or_a_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.routes.SETTLED_AFTER", 0.02)
    monkeypatch.setattr("gateway.routes.MOVE_INTERVAL", 0.02)
    fed = Fed(Rig("a", partitions=12))
    async with fed.running():
        fed.store(5)
        fresh = fed.rig.add(member("b"))
        count = 0
        while not fresh.open_feeds:
            fed.store(1, f"{count}.")
            count += 1
            await asyncio.sleep(0.001)
        await eventually(lambda: sum(node.open_feeds for node in fed.rig.nodes.values()) == 2)
        fed.store(5, "end")
        await fed.complete()


async def test_a_node_that_refuses_a_feed_keeps_its_place_and_another_feeds_meanwhile() -> None:
    fed = Fed(Rig())
    for node in fed.rig.nodes.values():
        if node.member.id == "a":
            node.feed_error = Unavailable("draining")
    fed.store(3)
    async with fed.running():
        await fed.complete()
        assert not fed.rig.membership.broken
        fed.rig.nodes["a/1"].feed_error = None
        wanted = {p for p in (0, 1) if fed.rig.best(p).member.id == "a"}
        await eventually(lambda: not wanted or fed.rig.nodes["a/1"].open_feeds)
        fed.store(3, "more")
        await fed.complete()


async def test_without_any_node_it_waits_and_goes_on() -> None:
    fed = Fed(Rig("a"))
    async with fed.running():
        node = fed.rig.best()
        fed.store(2)
        await fed.complete()
        node.kill()
        await eventually(lambda: not fed.rig.router.is_ready)
        fed.store(2, "more")
        node.is_reachable = True
        fed.rig.membership.paint(node.member)
        await fed.complete()


async def test_a_feed_that_skips_offsets_is_not_believed() -> None:
    fed = Fed(Rig())
    fed.store(2)
    async with fed.running():
        await fed.complete()
        liar = fed.rig.best()
        kept = fed.rig.log.records[0]
        fed.rig.log.append(0, [event("x"), event("y")])
        fed.feeds.next[0] -= 1  # as if the sink had not got the last record
        fed.sink.next[0] -= 1
        fed.sink.values[0].pop()
        await fed.complete()
        assert fed.sink.values[0] == [record.value.decode() for record in kept]
        assert liar.member.key in fed.rig.membership.broken


async def test_wait_for_returns_when_the_sink_has_the_record() -> None:
    fed = Fed(Rig())
    async with fed.running():
        assert not await fed.feeds.wait_for(0, 0, timeout=0.01)
        waiting = asyncio.create_task(fed.feeds.wait_for(0, 2, timeout=10))
        fed.store(2)
        await eventually(lambda: fed.sink.next[0] == 2)
        assert not waiting.done()
        assert not await fed.feeds.wait_for(0, 2, timeout=0.01)
        fed.store(1, "more")
        assert await waiting
        assert fed.sink.next[0] == 3
        assert await fed.feeds.wait_for(0, 2, timeout=0)


async def test_another_epoch_ends_it() -> None:
    fed = Fed(Rig("a", "b"))

    async def run() -> None:
        async with fed.running():
            node = fed.rig.others()[0]
            node.epoch = Epoch(2, 1)
            fed.rig.router.broken(fed.rig.handle(node))
            fed.rig.membership.paint(node.member)
            await asyncio.sleep(5)

    with pytest.raises(ExceptionGroup) as raised:
        await run()
    assert raised.group_contains(StaleEpoch)


@pytest.mark.parametrize("seed", range(10))
async def test_exactly_once_in_order_under_random_breaks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes cut batches anywhere, break, hang, die, drain and come back; routes move at will."""
    monkeypatch.setattr("gateway.routes.SETTLED_AFTER", 0.003)
    monkeypatch.setattr("gateway.routes.MOVE_INTERVAL", 0.003)
    chance = random.Random(seed)
    fed = Fed(Rig(partitions=5))
    nodes = list(fed.rig.nodes.values())
    for node in nodes:
        node.chaos = random.Random(chance.random())
    async with fed.running():
        for round_ in range(80):
            fed.store(chance.randint(0, 4), f"{round_}.")
            _shake(chance, fed.rig, chance.choice(nodes))
            await asyncio.sleep(chance.choice((0, 0.001, 0.004)))
        for node in nodes:
            node.chaos, node.hangs, node.is_reachable, node.feed_error = None, False, True, None
            node.break_link()
        while not fed.sink.is_complete:
            for node in nodes:
                fed.rig.membership.paint(node.member)
            await asyncio.sleep(0.005)


def _shake(chance: random.Random, rig: Rig, node: ModelNode) -> None:
    match chance.randrange(7):
        case 0:
            node.break_link()
        case 1:
            node.hangs = True
            rig.membership.paint(node.member, NodeState.DEAD)
        case 2:
            rig.membership.paint(node.member, chance.choice([NodeState.SUSPECT, NodeState.DRAINING]))
        case 3:
            node.feed_error = Unavailable("busy") if node.feed_error is None else None
        case _:
            node.hangs = False
            rig.membership.paint(node.member)
