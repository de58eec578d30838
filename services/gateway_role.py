"""The role of a gateway, composed from its parts."""

from __future__ import annotations

import asyncio
import logging
import socket
from asyncio import Task
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from gateway.app import create_app
from gateway.context import GatewayContext
from gateway.dispatch import Dispatcher
from gateway.feeds import FeedManager
from gateway.hub import Hub
from gateway.recent import latest
from gateway.replay import HistoryReader
from gateway.routing import Router
from gateway.server import serve
from gateway.short_streams import StreamShortcut
from gateway.shortcut import Shortcut
from gateway.siblings import Siblings
from gateway.streams import StreamCatalog
from services.listening import is_loopback, name_in, url_of
from services.roles import READY_TIMEOUT, Background, member_of, new_incarnation
from shared.clock import Clock
from shared.errors import CdrsError, StaleEpoch, StartError
from shared.health import keep_looking
from shared.membership import Load, Membership
from shared.ports import Member, NodeLink, NodeRegistry
from shared.settings import Settings
from shared.telemetry import Telemetry
from shared.version import VERSION

if TYPE_CHECKING:
    from services.node_role import NodeRole
    from shared.vitals import Vitals

DOOR_PATIENCE = 2.0
"""Seconds that clients wait at the door of a gateway which has not reached a node yet. Then they are let in to hear it
from the gateway itself."""

FIRST_PAUSE = 0.02
LONGEST_PAUSE = 2.0
"""Seconds between two attempts at beginning the feed; each pause is twice the one before."""

NEW_EPOCH_DRAIN = 1.0
"""Seconds in which streams are ended when the log has moved to another epoch."""

logger = logging.getLogger(__name__)


class _DispatchMetrics:
    """What the dispatcher tells, as metrics."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def settled(self, node: str, events: int, seconds: float) -> None:
        """Counted where the answer is given; the node measures its appends."""

    def failed(self, node: str, cause: str) -> None:
        """Counted when it was made good."""

    def failed_over(self, cause: str, seconds: float) -> None:
        """A handoff reached another node after all."""
        self._telemetry.failover_took(cause, seconds)


class GatewayRole:
    """The edge."""

    def __init__(
        self,
        registry: NodeRegistry,
        settings: Settings,
        clock: Clock,
        *,
        listener: socket.socket,
        telemetry: Telemetry,
        own: socket.socket | None = None,
        siblings: Siblings | None = None,
        local: NodeRole | None = None,
        missing: Mapping[str, str] | None = None,
        vitals: Vitals | None = None,
    ) -> None:
        """``own``: a port that is this process's alone, where ``siblings`` share the listener's. ``local``: the node of
        this very process; all others are reached over HTTP. ``missing``: what that node still waits for, by name;
        shown to whoever asks whether the gateway is ready."""
        self.member = member_of(settings, "gateway", listener, incarnation=new_incarnation())
        self.url = settings.gateway.public_url or self.member.url
        if own is not None and siblings is not None:
            name = f"{self.member.id}-{siblings.name.rpartition('-')[2]}"
            self.member = msgspec.structs.replace(self.member, id=name, url=url_of(own))
        self._settings = settings
        self._listeners = [each for each in (listener, own) if each is not None]
        self._local = local
        self._hub = Hub(settings.sse, clock, telemetry)
        membership = Membership(registry, settings, clock, self.member, self._load, on_change=telemetry.state_changed)
        router = Router(membership, settings, clock, self._connect)
        self.context = GatewayContext(
            settings=settings,
            clock=clock,
            telemetry=telemetry,
            membership=membership,
            router=router,
            dispatcher=Dispatcher(router, settings, clock, observer=_DispatchMetrics(telemetry)),
            feeds=FeedManager(router, self._hub.sink),
            hub=self._hub,
            history=HistoryReader(router, self._hub, clock, telemetry),
            catalog=StreamCatalog(router, clock),
            version=VERSION,
            missing={} if missing is None else missing,
            vitals=vitals,
            siblings=siblings,
        )
        self._app = create_app(self.context)
        if local is not None:
            self.attach(local)
        self._started = asyncio.Event()
        self._open_door = asyncio.Event()
        self._close_door = asyncio.Event()
        self._serving: Task[None] | None = None

    def attach(self, local: NodeRole) -> None:
        """The node of this very process is there; it is found without the registry."""
        self._local = local
        self.context.router.seed(local.member)

    def _connect(self, member: Member) -> NodeLink:
        if self._local is not None and member.key == self._local.member.key:
            return self._local.node
        # With one process there is no other node, and the HTTP client would be a third of what it holds in memory.
        from shared.backends.http.link import HttpNodeLink  # noqa: PLC0415

        return HttpNodeLink(member.url)

    def _load(self) -> Load:
        router, dispatcher = self.context.router, self.context.dispatcher
        return Load(
            in_flight=dispatcher.in_flight,
            ewma_ms=dispatcher.ewma_ms,
            connections=len(self._hub),
            partitions=router.partitions if router.is_known else 0,
        )

    async def start(self, background: Background) -> None:
        """Come up: the feed starts as soon as a node can be reached, and then the door opens, or after `DOOR_PATIENCE`.

        So a request that was waiting while this process was started is not answered with a 503 first."""
        context = self.context
        background.start(context.membership.run(), "gateway-membership")
        background.start(context.router.run(), "router")
        background.start(context.dispatcher.run(), "dispatcher")
        background.start(self._hub.run(), "hub")
        background.start(self._follow(), "feeds")
        background.start(keep_looking(self._app.state.health.look), "health")
        self._serving = background.start(self._serve(), "gateway-server")
        logger.info("gateway serves", extra={"id": self.member.key, "url": self.member.url})

    async def _serve(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(DOOR_PATIENCE):
                await self._open_door.wait()
        await serve(
            self._app,
            self._listeners,
            self._settings.gateway,
            stop=self._close_door,
            shortcut=Shortcut(self.context),
            streams=StreamShortcut(self.context) if self._settings.sse.write_path != "portable" else None,
            hosts=_hosts(self._settings),
            stalls=self._hub.stalls,
        )

    async def _follow(self) -> None:
        context = self.context
        pause = FIRST_PAUSE
        while not self._hub.started:
            if not await context.router.ready(READY_TIMEOUT):
                continue
            try:
                epoch, link = context.router.epoch, context.router.any().link
                positions = await link.ends()
                recent = await latest(link, positions, self._settings.sse.warm_records)
                self._hub.start(epoch, positions, recent)
                self._started.set()
                self._open_door.set()
            except CdrsError as error:  # nodes that live without their log refuse at once
                logger.debug("the feed cannot begin yet: %s", error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        try:
            await context.feeds.run(self._hub.vector.next)
        except* StaleEpoch as found:
            # Everything here is of the old epoch. Readers are sent away to come back to a process that begins anew.
            await self._hub.drain(NEW_EPOCH_DRAIN)
            raise StartError(f"{found.exceptions[0]}; the gateway has to begin anew") from found

    async def ready(self) -> None:
        """Until events can go in and out."""
        await self._started.wait()
        while not await self.context.router.ready(READY_TIMEOUT):
            logger.warning("no node can be reached yet")

    async def drain(self) -> None:
        """Look unready, serve producers a little longer, end the streams in waves, finish what was accepted."""
        gateway = self._settings.gateway
        self.context.membership.draining = True
        self.context.begin_drain()
        self._open_door.set()  # whoever waits there is told
        await asyncio.sleep(gateway.drain_delay)
        with suppress(TimeoutError):
            async with asyncio.timeout(gateway.drain_timeout):
                await self._hub.drain(gateway.drain_timeout)
                self._close_door.set()
                if self._serving is not None:
                    await asyncio.wait([self._serving])


def _hosts(settings: Settings) -> frozenset[bytes] | None:
    """By which names clients may call a gateway that only this machine reaches; None: by any."""
    if settings.insecure or not is_loopback(settings.gateway.host):
        return None
    name = name_in(settings.gateway.public_url)
    return frozenset({name.encode()} if name else ())
