"""``/v1/nodes``: which node stands first for which partition, while nodes come, hang and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
from gateway_rig import Rig
from model_nodes import ModelNode, member
from starlette.requests import Request

from gateway.context import GatewayContext
from gateway.nodes import list_nodes, nodes_document
from shared.detector import NodeState

PARTITIONS = 12
EVERY = list(range(PARTITIONS))


def context_of(rig: Rig) -> GatewayContext:
    """As much of a gateway as the handlers of ``/v1/nodes`` look at."""
    hub = SimpleNamespace(jittered_retry=lambda: 1000)
    context = SimpleNamespace(
        router=rig.router, membership=rig.membership, settings=rig.settings, hub=hub, draining=False, on_drain=[]
    )
    return cast("GatewayContext", context)


def owned(nodes: list[dict[str, Any]]) -> list[int]:
    return sorted(partition for node in nodes for partition in node["preferred"])


def preferred(context: GatewayContext) -> dict[str, list[int]]:
    return {node["id"]: list(node["preferred"]) for node in nodes_document(context)["nodes"]}


class Watcher:
    """What a page that follows the stream shows."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}

    def hear(self, block: bytes) -> None:
        lines = block.splitlines()
        data = next((line[6:] for line in lines if line.startswith(b"data: ")), b"")
        if b"event: cdrs.nodes" in lines:
            self.nodes = {key_of(node): node for node in orjson.loads(data)["nodes"]}
        elif b"event: cdrs.node" in lines:
            said = orjson.loads(data)
            if said["change"] == "leave":
                self.nodes.pop(key_of(said["node"]), None)
            else:
                self.nodes[key_of(said["node"])] = said["node"]

    def shows(self, context: GatewayContext) -> bool:
        now = {key_of(node): list(node["preferred"]) for node in nodes_document(context)["nodes"]}
        return {key: node["preferred"] for key, node in self.nodes.items()} == now


def key_of(node: dict[str, Any]) -> str:
    return f"{node['id']}/{node['incarnation']}"


@asynccontextmanager
async def watching(context: GatewayContext) -> AsyncIterator[Watcher]:
    app = SimpleNamespace(state=SimpleNamespace(gateway=context))
    scope = {"type": "http", "method": "GET", "path": "/v1/nodes", "query_string": b"", "app": app,
             "headers": [(b"accept", b"text/event-stream")]}  # fmt: skip
    response = cast("Any", await list_nodes(Request(scope)))
    watcher = Watcher()

    async def follow() -> None:
        async for chunk in response.body_iterator:
            for block in chunk.split(b"\n\n"):
                watcher.hear(block)

    task = asyncio.create_task(follow())
    try:
        await eventually(lambda: bool(watcher.nodes))
        yield watcher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def named(rig: Rig, name: str) -> ModelNode:
    return next(node for node in rig.nodes.values() if node.member.id == name)


async def test_every_partition_has_a_first_node_also_while_all_are_suspect() -> None:
    rig = Rig("a", "b", partitions=PARTITIONS)
    context = context_of(rig)

    def shares(a: list[int], b: list[int]) -> bool:
        assert owned(nodes_document(context)["nodes"]) == EVERY
        return preferred(context) == {"a": a, "b": b}

    def paint(name: str, state: NodeState) -> None:
        rig.membership.paint(named(rig, name).member, state)

    async with rig.running():
        paint("a", NodeState.SUSPECT)
        await eventually(lambda: shares([], EVERY))
        paint("b", NodeState.SUSPECT)
        assert shares([], EVERY)
        paint("a", NodeState.LIVE)
        await eventually(lambda: shares(EVERY, []))
        paint("a", NodeState.SUSPECT)
        rig.membership.erase(named(rig, "b").member)
        await eventually(lambda: len(rig.router.handles()) == 1)
        assert preferred(context) == {"a": EVERY}, "a suspect, and yet the first"


@pytest.mark.parametrize("end", ["breaks", "dead", "leaves"])
async def test_partitions_of_a_lost_node_are_shown_at_those_who_take_them(end: str) -> None:
    """Nothing else is heard of the others meanwhile: their figures stay the same."""
    rig = Rig("a", "b", "c", partitions=PARTITIONS)
    context = context_of(rig)
    async with rig.running(), watching(context) as watcher:
        assert owned(list(watcher.nodes.values())) == EVERY
        victim = rig.best()
        if end == "breaks":
            rig.router.broken(rig.handle(victim))
        elif end == "dead":
            rig.membership.paint(victim.member, NodeState.DEAD)
        else:
            rig.membership.erase(victim.member)
        await eventually(lambda: len(rig.router.handles()) == 2)
        await eventually(lambda: watcher.shows(context))
        assert owned(list(watcher.nodes.values())) == EVERY
        assert not watcher.nodes.get(victim.member.key, {"preferred": []})["preferred"]


async def test_partitions_that_move_to_a_newcomer_are_shown_there() -> None:
    """They move a while after its last change of state, by the router's own clock."""
    rig = Rig("a", partitions=PARTITIONS)
    context = context_of(rig)
    async with rig.running(), watching(context) as watcher:
        rig.add(member("b"))
        await eventually(lambda: len(watcher.nodes) == 2 and preferred(context)["b"])
        await eventually(lambda: watcher.shows(context))
        assert owned(list(watcher.nodes.values())) == EVERY
