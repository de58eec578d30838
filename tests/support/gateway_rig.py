"""A gateway's router, dispatcher and feeds on model nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from model_nodes import ModelLog, ModelNode, PaintedMembership, event, member

from gateway.dispatch import Dispatcher
from gateway.routing import NodeHandle, Router
from gateway.submission import Submission
from shared.clock import SystemClock
from shared.ports import Member, NodeLink
from shared.settings import Settings


class Rig:
    """Three nodes (unless said otherwise) on one log, all live, and a router that follows them."""

    def __init__(self, *names: str, partitions: int = 2, **gateway: Any) -> None:
        self.log = ModelLog(partitions)
        self.membership = PaintedMembership()
        self.nodes: dict[str, ModelNode] = {}
        defaults = Settings()
        self.settings = defaults.model_copy(update={"gateway": defaults.gateway.model_copy(update=gateway)})
        self.router = Router(self.membership, self.settings, SystemClock(), self._connect)
        self.dispatcher = Dispatcher(self.router, self.settings, SystemClock())
        for name in names or ("a", "b", "c"):
            self.add(member(name))

    def add(self, of: Member) -> ModelNode:
        node = self.nodes[of.key] = ModelNode(self.log, of)
        self.membership.paint(of)
        return node

    def _connect(self, of: Member) -> NodeLink:
        return self.nodes[of.key].link()

    def best(self, partition: int = 0) -> ModelNode:
        return self.nodes[self.router.ranked(partition)[0].key]

    def others(self, partition: int = 0) -> list[ModelNode]:
        return [self.nodes[handle.key] for handle in self.router.ranked(partition)[1:]]

    def handle(self, node: ModelNode) -> NodeHandle:
        return next(handle for handle in self.router.handles() if handle.key == node.member.key)

    async def beat(self) -> None:
        """Let every node beat, much faster than real ones."""
        while True:
            for node in self.nodes.values():
                if node.is_reachable and not node.hangs:
                    self.membership.paint(node.member)
            await asyncio.sleep(0.002)

    async def all_reached(self) -> None:
        async with asyncio.timeout(5):
            while len(self.router.handles()) < len(self.nodes):
                await asyncio.sleep(0.002)

    @asynccontextmanager
    async def running(self, *more: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[Rig]:
        """Run router, dispatcher and whatever else, from the moment that every node was reached."""
        async with asyncio.TaskGroup() as tasks:
            started = [tasks.create_task(self.router.run())]
            await self.all_reached()
            started += [tasks.create_task(work()) for work in (self.dispatcher.run, *more)]
            await asyncio.sleep(0)
            try:
                yield self
            finally:
                for task in reversed(started):
                    task.cancel()


def submit(rig: Rig, *names: str, partition: int = 0, timeout: float = 20.0) -> Submission:
    """Events of these names, as one request has them."""
    return rig.dispatcher.submit([(partition, event(name)) for name in names], timeout=timeout)


def problems(submission: Submission) -> list[str]:
    """What became of each event: nothing where it was stored, a question mark where it is under way."""
    return [result.problem if result is not None else "?" for result in submission.results]


WAYS = ["by task", "by call", "by call, together"]


def take_way(monkeypatch: pytest.MonkeyPatch, way: str) -> str:
    """To a node in another process, and to one in this, whose partitions are independent or are committed together."""
    monkeypatch.setattr(ModelNode, "is_direct", way != "by task")
    monkeypatch.setattr(ModelNode, "commits_together", way.endswith("together"))
    return way
