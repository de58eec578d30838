"""The portable write path: whose bytes leave, however few at a time, is kept; whose do not is cut. On a clock that a
test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hand_clock import HandClock
from sse_starlette.sse import SendTimeoutError

from gateway.event_stream import EventStream
from gateway.stalls import StallWatch
from shared.settings import Settings, SseSettings

TIMEOUT = 30.0


class Full:
    """A transport with so much in it."""

    left = 100_000
    was_aborted = False

    def get_write_buffer_size(self) -> int:
        return self.left

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return 16_384, 65_536

    def set_write_buffer_limits(self, high: int | None = None) -> None:
        pass

    def get_extra_info(self, _name: str) -> Any:
        return None

    def abort(self) -> None:
        self.was_aborted = True


class Server:
    """Sends when it may."""

    def __init__(self, transport: Full) -> None:
        self.clock = HandClock()
        self.watch = StallWatch(self.clock, TIMEOUT)
        self.transport = transport
        self.goes_on = asyncio.Event()
        gateway = SimpleNamespace(hub=SimpleNamespace(stalls=self.watch), settings=Settings())
        self.scope: dict[str, Any] = {
            "type": "http", "method": "GET", "extensions": {"cdrs.transport": transport},
            "app": SimpleNamespace(state=SimpleNamespace(gateway=gateway)),
        }  # fmt: skip

    async def receive(self) -> Any:
        await asyncio.Event().wait()

    async def send(self, _message: Any) -> None:
        await self.goes_on.wait()

    async def look_after(self, seconds: float) -> None:
        self.clock.now += seconds
        await self.watch.look()


async def one_chunk() -> AsyncIterator[bytes]:
    yield b"data: 1\n\n"


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_takes_little_is_kept_and_who_takes_nothing_is_cut() -> None:
    server = Server(Full())
    answer = EventStream(one_chunk(), settings=Settings())
    sending = asyncio.create_task(answer(server.scope, server.receive, server.send))
    await turns()
    for _ in range(10):
        server.transport.left -= 100
        await server.look_after(0.9 * TIMEOUT)
    assert not server.transport.was_aborted
    await server.look_after(0.9 * TIMEOUT)
    assert not server.transport.was_aborted
    await server.look_after(0.2 * TIMEOUT)
    assert server.transport.was_aborted
    server.goes_on.set()
    await sending


async def test_what_does_not_wait_is_not_watched() -> None:
    server = Server(Full())
    server.transport.left = 16_384
    sending = asyncio.create_task(
        EventStream(one_chunk(), settings=Settings())(server.scope, server.receive, server.send)
    )
    await turns()
    assert len(server.watch) == 0
    server.goes_on.set()
    await sending


async def test_where_the_connection_cannot_be_seen_a_write_has_its_time() -> None:
    server = Server(Full())
    server.scope["extensions"] = {}
    answer = EventStream(one_chunk(), settings=Settings(sse=SseSettings(stall_timeout=1)))
    assert answer.send_timeout == 1
    answer.send_timeout = 0.01

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await server.send(message)

    with pytest.raises(SendTimeoutError):
        await answer(cast("Any", server.scope), server.receive, send)
