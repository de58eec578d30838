"""Starts processes: everything in one, a gateway alone, a node alone.

Each function runs until ``stop`` is set, drains, and returns. A part that fails ends the process: its supervisor, or
the operator's, starts a whole new one rather than a half one going on.

A role is imported where it is started: a node needs nothing of a gateway, nor a gateway of a node.
"""

from __future__ import annotations

import asyncio
from asyncio import TaskGroup
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from cdrs.probes import NodeHealth
from services.doors import Door, Inherited
from services.doorway import Doorway, first_of
from services.listening import listening, require_gateway, require_loopback, require_url
from services.process import OnReady
from services.roles import Background
from shared.backplane import check_urls, open_ports, open_registry
from shared.clock import Clock, SystemClock
from shared.settings import Settings
from shared.telemetry import Telemetry
from shared.version import VERSION
from shared.vitals import Vitals

NODE_DRAIN = 2.0
"""Seconds for a node to finish the handoffs it has taken."""


async def run_all_in_one(settings: Settings, stop: asyncio.Event, on_ready: OnReady) -> None:
    """A node and a gateway that talk without a network. The node listens too, for gateways beside this process."""
    from services.gateway_role import GatewayRole
    from services.node_role import NodeRole

    require_gateway(settings)
    require_loopback(settings.node.host, insecure=settings.insecure, setting="node.host")
    await check_urls(settings)
    clock, telemetry = SystemClock(), Telemetry(version=VERSION, process=True)
    async with AsyncExitStack() as stack:
        door = stack.enter_context(listening(settings.gateway.host, settings.gateway.port, flag="--port"))
        node_door = stack.enter_context(listening(settings.node.host, settings.node.port, flag="CDRS_NODE__PORT"))
        registry = await stack.enter_async_context(open_registry(settings))
        async with TaskGroup() as group:
            background = Background(group)
            vitals = _watching(settings, clock, telemetry, background)
            doorway = Doorway(node_door, NodeHealth(clock, telemetry, vitals))
            background.start(doorway.serve(), "node-server")
            gateway = GatewayRole(
                registry,
                settings,
                clock,
                listener=door,
                telemetry=telemetry,
                missing=doorway.health.missing,
                vitals=vitals,
            )
            if settings.is_distributed:
                # It answers, and says what is missing, while the servers are looked for.
                await gateway.start(background)
            opening = open_ports(settings, clock, registry=registry, waiting=doorway.tell)
            ports = await first_of(stack.enter_async_context(opening), stop)
            node = None
            if ports is not None:
                beside = gateway.context.membership
                node = NodeRole(ports, settings, clock, doorway=doorway, telemetry=telemetry, beside=beside)
                if await first_of(_true(node.start(background)), stop):
                    gateway.attach(node)
            if not settings.is_distributed:
                await gateway.start(background)
            await _serve_until(stop, gateway.url, gateway.ready, on_ready, group)
            await gateway.drain()
            if node is not None:
                await node.drain(NODE_DRAIN)
            background.cancel()


async def run_gateway(
    settings: Settings, stop: asyncio.Event, on_ready: OnReady, *, inherited: Inherited | None = None
) -> None:
    """A gateway; its nodes are other processes. ``inherited``: what a supervisor gave to it."""
    from services.gateway_role import GatewayRole

    require_gateway(settings)
    siblings = None if inherited is None else inherited.sibling_gateways
    worker = "" if siblings is None else siblings.name
    clock, telemetry = SystemClock(), Telemetry(version=VERSION, process=True, worker=worker)
    async with AsyncExitStack() as stack:
        if inherited is None:
            door = Door(stack.enter_context(listening(settings.gateway.host, settings.gateway.port, flag="--port")))
        else:
            door = stack.enter_context(inherited.door())
        registry = await stack.enter_async_context(open_registry(settings))
        async with TaskGroup() as group:
            background = Background(group)
            gateway = GatewayRole(
                registry,
                settings,
                clock,
                listener=door.common,
                own=door.own,
                telemetry=telemetry,
                siblings=siblings,
                vitals=_watching(settings, clock, telemetry, background),
            )
            await gateway.start(background)
            await _serve_until(stop, gateway.url, gateway.ready, on_ready, group)
            await gateway.drain()
            background.cancel()


async def run_node(settings: Settings, stop: asyncio.Event, on_ready: OnReady) -> None:
    """A CDRS node; gateways are other processes."""
    from services.node_role import NodeRole, standing_by

    require_loopback(settings.node.host, insecure=settings.insecure, setting="node.host")
    require_url(settings.node.url, setting="node.url")
    await check_urls(settings)
    clock, telemetry = SystemClock(), Telemetry(version=VERSION, process=True)
    async with AsyncExitStack() as stack:
        door = stack.enter_context(listening(settings.node.host, settings.node.port, flag="--port"))
        async with TaskGroup() as group:
            background = Background(group)
            vitals = _watching(settings, clock, telemetry, background)
            doorway = Doorway(door, NodeHealth(clock, telemetry, vitals))
            background.start(doorway.serve(), "node-server")
            background.start(doorway.health.keep_looking(), "health")
            registry = await stack.enter_async_context(open_registry(settings))
            async with standing_by(registry, settings, clock, doorway):
                opening = open_ports(settings, clock, registry=registry, waiting=doorway.tell)
                ports = await first_of(stack.enter_async_context(opening), stop)
                node, started = None, None
                if ports is not None:
                    node = NodeRole(ports, settings, clock, doorway=doorway, telemetry=telemetry)
                    started = await first_of(_true(node.start(background)), stop)
            if node is not None and started:
                await _serve_until(stop, node.member.url, _at_once, on_ready, group)
                await node.drain(NODE_DRAIN)
            background.cancel()


def _watching(settings: Settings, clock: Clock, telemetry: Telemetry, background: Background) -> Vitals:
    vitals = Vitals(clock, folder=None if settings.is_distributed else settings.data)
    telemetry.before_render(lambda: vitals.export(telemetry))
    background.start(vitals.run(), "vitals")
    return vitals


async def _true(work: Awaitable[None]) -> bool:
    await work
    return True


async def _at_once() -> None:
    return


async def _serve_until(
    stop: asyncio.Event, url: str, ready: Callable[[], Awaitable[None]], on_ready: OnReady, group: TaskGroup
) -> None:
    async def announce() -> None:
        await ready()
        await on_ready(url)

    announcing = group.create_task(announce(), name="announce")
    await stop.wait()
    announcing.cancel()
