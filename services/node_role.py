"""The role of a CDRS node, composed from its parts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from cdrs.api import NodeApi
from cdrs.node import Node
from services.doorway import Doorway
from services.roles import READY_TIMEOUT, Background, member_of, new_incarnation
from shared.backplane import Ports
from shared.clock import Clock
from shared.detector import NodeState
from shared.errors import StartError
from shared.membership import Load, Membership
from shared.partitioning import rendezvous
from shared.ports import STARTING, NodeRegistry
from shared.settings import Settings
from shared.telemetry import Telemetry

RANK_INTERVAL = 0.3
"""Seconds between two looks at who persists what; that two do is harmless, and that none does lasts as long."""

logger = logging.getLogger(__name__)


@asynccontextmanager
async def standing_by(
    registry: NodeRegistry, settings: Settings, clock: Clock, doorway: Doorway
) -> AsyncGenerator[None]:
    """While its servers are looked for, a node stands in the registry as one that is starting, and its beats say what
    it waits for: so gateways can tell, and nobody sends it anything."""
    if not settings.is_distributed:
        yield
        return
    me = member_of(settings, STARTING, doorway.listener, incarnation=new_incarnation())
    membership = Membership(registry, settings, clock, me, lambda: Load(waits=doorway.health.missing), watches=False)
    doorway.health.membership = membership
    beating = asyncio.create_task(membership.run(), name="starting-membership")
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.wait({beating})


class NodeRole:
    """A CDRS node: reachable over HTTP by other processes, and directly within this one."""

    def __init__(
        self,
        ports: Ports,
        settings: Settings,
        clock: Clock,
        *,
        doorway: Doorway,
        telemetry: Telemetry,
        beside: Membership | None = None,
    ) -> None:
        """``beside``: another membership of this process, which looks at the registry."""
        self.member = member_of(settings, "node", doorway.listener, incarnation=new_incarnation())
        self._ranked: dict[str, float] = {}
        self._mine: set[int] = set()
        self._rank_again = float("-inf")
        self._clock = clock
        self._partitions = ports.log.partitions
        self.node = Node(
            ports.log,
            ports.store,
            settings,
            clock,
            node_id=self.member.id,
            incarnation=self.member.incarnation,
            telemetry=telemetry,
            preferred=self._prefers,
        )
        self._doorway = doorway
        self._may_wait = settings.is_distributed
        # Who persists what goes by the picture of the others.
        tells = telemetry.state_changed if beside is None else None  # what the other one finds would be counted twice
        self._membership = Membership(
            ports.registry,
            settings,
            clock,
            self.member,
            self.node.load,
            watches=beside is None or not ports.store.is_log,
            beside=beside,
            on_change=tells,
        )

    async def start(self, background: Background) -> None:
        """Come up: first the tail, then the door, then the registry."""
        health = self._doorway.health
        if self._may_wait:
            health.missing["tail"] = "reading what the log has beyond the store"
        background.start(self.node.run(), "node")
        while not await self.node.ready(READY_TIMEOUT):
            if not self._may_wait:
                raise StartError(
                    f"the log cannot be read within {READY_TIMEOUT:.0f} s; is another process stuck on it?"
                )
            logger.warning("still reading what the log has beyond the store")
        health.missing.pop("tail", None)
        health.node, health.membership = self.node, self._membership
        self._doorway.open(NodeApi(self.node, health=health), self.node.stop)
        background.start(self._membership.run(), "node-membership")
        logger.info("node serves", extra={"id": self.member.key, "url": self.member.url})

    def _prefers(self, partition: int) -> bool:
        """Whether this node comes first for a partition among the live ones, as gateways rank them."""
        now = self._clock.monotonic()
        if now >= self._rank_again:
            self._rank_again = now + RANK_INTERVAL
            live = {self.member.id: self.member.capacity}
            for view in self._membership.picture.members.values():
                if view.member.role == "node" and view.state in {NodeState.LIVE, NodeState.SUSPECT}:
                    live[view.member.id] = view.member.capacity
            if live != self._ranked:
                self._ranked = live
                self._mine = {p for p in range(self._partitions) if rendezvous(p, live.items())[0] == self.member.id}
        return partition in self._mine

    async def drain(self, timeout: float) -> None:
        """Leave the routes, finish what is in flight. The door closes, and feeds end, with the background."""
        self._membership.draining = True
        await self.node.drain(timeout)
