"""What a gateway remembers of streams: asked once, by many at a time, and never for long that something is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hand_clock import HandClock

from gateway.routing import NodeHandle
from gateway.streams import StreamCatalog
from shared.errors import InternalError, LinkBroken, Unavailable
from shared.ports import Member
from shared.records import StreamInfo


class Node:
    """As much of a node as answers about streams."""

    def __init__(self, **spreads: int) -> None:
        self.spreads = spreads
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def stream(self, name: str) -> StreamInfo | None:
        self.asked.append(name)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return StreamInfo(name, self.spreads[name], 1) if name in self.spreads else None


class OneByOne:
    """A router over nodes in a fixed order."""

    def __init__(self, *nodes: Node) -> None:
        self.left = [NodeHandle(Member(f"n{i}", "1", "node", "", "", "", 1.0), node) for i, node in enumerate(nodes)]

    def any(self) -> NodeHandle:
        if not self.left:
            raise Unavailable("nobody")
        return self.left[0]

    def ranked(self, _partition: int) -> Sequence[NodeHandle]:
        return self.left

    def broken(self, handle: NodeHandle) -> None:
        handle.leave()
        self.left.remove(handle)


def catalog(*nodes: Node, clock: Any = None, capacity: int = 100) -> StreamCatalog:
    return StreamCatalog(OneByOne(*nodes), clock or HandClock(), capacity=capacity)


async def test_a_spread_is_asked_for_once() -> None:
    node = Node(a=3)
    streams = catalog(node)
    assert streams.cached_spread("a") is None
    assert await streams.spread_of("a") == 3
    assert await streams.spread_of("a") == 3
    assert streams.cached_spread("a") == 3
    assert await streams.existing_spread("a") == 3
    assert node.asked == ["a"]


async def test_many_who_ask_at_once_share_one_question() -> None:
    node = Node(a=2)
    node.gate.clear()
    streams = catalog(node)
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(streams.spread_of("a")) for _ in range(50)]
        await asyncio.sleep(0)
        node.gate.set()
    assert {task.result() for task in asking} == {2}
    assert node.asked == ["a"]


async def test_an_absent_stream_has_spread_1_for_a_moment() -> None:
    clock, node = HandClock(), Node()
    streams = catalog(node, clock=clock)
    assert await streams.spread_of("new") == 1
    assert streams.cached_spread("new") == 1
    assert node.asked == ["new"]
    node.spreads["new"] = 4
    clock.now += 1.01
    assert streams.cached_spread("new") is None
    assert await streams.spread_of("new") == 4


async def test_a_stream_born_by_its_first_event_needs_no_second_question() -> None:
    node, clock = Node(b=3), HandClock()
    streams = catalog(node, clock=clock)
    assert await streams.spread_of("a") == 1
    assert streams.has_absent
    streams.stored(["a", "b"])
    assert not streams.has_absent
    clock.now += 1000
    node.error = Unavailable("away")
    assert await streams.existing_spread("a") == 1
    assert streams.cached_spread("b") is None, "nobody said that it was absent"


async def test_absence_does_not_hide_a_stream_from_who_needs_to_know() -> None:
    node = Node()
    streams = catalog(node)
    assert await streams.existing_spread("new") is None
    node.spreads["new"] = 4
    assert await streams.existing_spread("new") == 4


async def test_refresh_asks_again() -> None:
    node = Node()
    streams = catalog(node)
    assert await streams.refresh("a") is None
    node.spreads["a"] = 5
    info = await streams.refresh("a")
    assert info is not None
    assert info.spread == 5
    assert streams.cached_spread("a") == 5


async def test_a_client_that_goes_away_takes_nobody_with_it() -> None:
    node = Node(a=2)
    node.gate.clear()
    streams = catalog(node)
    first = asyncio.create_task(streams.spread_of("a"))
    await asyncio.sleep(0)
    others = [asyncio.create_task(streams.spread_of("a")) for _ in range(3)]
    await asyncio.sleep(0)
    first.cancel()
    while len(node.asked) < 2:  # one of the others asks instead
        await asyncio.sleep(0)
    node.gate.set()
    assert await asyncio.gather(*others) == [2, 2, 2]
    assert first.cancelled()
    assert node.asked == ["a", "a"]


async def test_a_waiting_client_that_goes_away_does_not_stop_the_question() -> None:
    node = Node(a=2)
    node.gate.clear()
    streams = catalog(node)
    first = asyncio.create_task(streams.spread_of("a"))
    await asyncio.sleep(0)
    second = asyncio.create_task(streams.spread_of("a"))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait((second,))
    node.gate.set()
    assert await first == 2


async def test_trouble_is_told_to_all_and_not_remembered() -> None:
    node = Node(a=2)
    node.error = InternalError("broken")
    node.gate.clear()
    streams = catalog(node)
    asking = [asyncio.create_task(streams.spread_of("a")) for _ in range(3)]
    await asyncio.sleep(0)
    node.gate.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InternalError] * 3
    node.error = None
    assert await streams.spread_of("a") == 2


async def test_the_next_node_answers_for_one_whose_link_broke() -> None:
    gone, alive = Node(), Node(a=6)
    gone.error = LinkBroken("reset")
    router = OneByOne(gone, alive)
    streams = StreamCatalog(router, HandClock())
    assert await streams.spread_of("a") == 6
    assert [handle.key for handle in router.left] == ["n1/1"]


async def test_a_busy_node_keeps_its_place_but_the_next_answers() -> None:
    busy, alive = Node(), Node(a=6)
    busy.error = Unavailable("draining")
    router = OneByOne(busy, alive)
    assert await StreamCatalog(router, HandClock()).spread_of("a") == 6
    assert len(router.left) == 2


async def test_without_nodes_it_says_so() -> None:
    with pytest.raises(Unavailable):
        await catalog().spread_of("a")
    broken = Node()
    broken.error = LinkBroken("reset")
    with pytest.raises(Unavailable) as raised:
        await catalog(broken).spread_of("a")
    assert not isinstance(raised.value, LinkBroken)


async def test_it_is_bounded_and_keeps_what_is_used() -> None:
    node = Node(**{f"s{i}": 2 for i in range(1000)})
    streams = catalog(node, capacity=100)
    for i in range(1000):
        await streams.spread_of(f"s{i}")
        assert streams.cached_spread("s0") == 2
    assert sum(streams.cached_spread(f"s{i}") is not None for i in range(1000)) <= 100
    for i in range(1000):
        await streams.spread_of(f"absent{i}")
    assert streams.cached_spread("absent999") == 1
    assert sum(streams.cached_spread(f"absent{i}") is not None for i in range(1000)) <= 100


async def test_learn_asks_for_what_is_unknown_only() -> None:
    node = Node(a=2, b=3)
    streams = catalog(node)
    await streams.spread_of("a")
    await streams.learn(["a", "b", "c", "b"])
    assert sorted(node.asked) == ["a", "b", "c"]
    assert (streams.cached_spread("b"), streams.cached_spread("c")) == (3, 1)
    await streams.learn([])


async def test_learn_fails_with_a_plain_error() -> None:
    with pytest.raises(Unavailable):
        await catalog().learn(["a", "b"])
