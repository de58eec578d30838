"""A running node over a model log, for tests of one node."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from model_log import ModelLog, ModelStore

from cdrs.api import NodeApi
from cdrs.node import Node
from cdrs.server import serve
from shared.clock import SystemClock
from shared.ports import EventLog, NodeLink
from shared.settings import NodeSettings, Settings
from shared.telemetry import Telemetry

WINDOW = 64
RING = 32
TIMEOUT = 15.0


@asynccontextmanager
async def running(work: Callable[[], Awaitable[None]]) -> AsyncGenerator[asyncio.Future[None]]:
    task = asyncio.ensure_future(work())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


@asynccontextmanager
async def running_node(log: ModelLog, store: ModelStore | None = None, **node_settings: int) -> AsyncGenerator[Node]:
    settings = Settings(node=NodeSettings(ring_records=RING, window=WINDOW, **node_settings))
    node = Node(log, store or ModelStore(log), settings, SystemClock(), node_id="n1", incarnation="i1")
    async with running(node.run):
        assert await node.ready(TIMEOUT)
        yield node


@asynccontextmanager
async def served(node: Node, *, grace: float = 1.0, telemetry: Telemetry | None = None) -> AsyncGenerator[str]:
    sock = socket.create_server(("127.0.0.1", 0))
    started = asyncio.Event()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    api = NodeApi(node, telemetry)
    async with running(lambda: serve(api, sock, grace=grace, on_started=started.set, on_stop=node.stop)):
        await asyncio.wait_for(started.wait(), TIMEOUT)
        yield url


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.002)


async def read_feed(node: NodeLink, log: EventLog, upto: int, *, start: int = 0) -> list[bytes]:
    seen: list[bytes] = []
    at = start
    async with asyncio.timeout(20), node.feed(log.epoch, {0: start}) as feed:
        async for batch in feed:
            assert batch.start == at
            at = batch.next
            seen += [record.value for record in batch.records]
            if at >= upto:
                return seen
    raise AssertionError("the feed ended")
