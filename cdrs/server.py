"""The node's HTTP server: for gateways, with a bounded stop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from shared.embedded_server import EmbeddedServer

KEEP_ALIVE = 75
"""Seconds an idle connection is kept: longer than our clients keep theirs, so that they never meet a closing one."""
BACKLOG = 2048
STARTED_POLL = 0.005


async def serve(
    app: Callable[..., Any],
    sock: socket.socket,
    *,
    grace: float = 2.0,
    on_started: Callable[[], None] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> None:
    """Serve until cancelled; then take no more connections, call ``on_stop`` (to end what never ends by itself), let
    requests finish for at most ``grace`` seconds, and cut the rest. Takes the socket over and closes it.

    ``on_started`` is called once connections are taken.
    """
    # Inherited by accepted sockets. asyncio itself sets it only where a socket shows its protocol number, and many do
    # not; without it an answer written in two pieces waits 40 ms for the other side's delayed acknowledgement.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        loop="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(grace)),
    )
    server = EmbeddedServer(config)
    running = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        if on_started is not None:
            while not server.started and not running.done():  # noqa: ASYNC110 -- uvicorn has no event to wait for
                await asyncio.sleep(STARTED_POLL)
            on_started()
        await asyncio.shield(running)
    finally:
        server.leave()
        if on_stop is not None:
            on_stop()
        if not running.done():
            await asyncio.wait({running}, timeout=grace + 1.0)
        if not running.done():
            server.force_exit = True
            running.cancel()
            await asyncio.wait({running}, timeout=1.0)
        sock.close()
