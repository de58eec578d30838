"""Answers that wait for their client: whose bytes leave, however few at a time, is kept; whose do not is cut.

On a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hand_clock import HandClock
from sse_starlette.sse import SendTimeoutError
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.event_stream import EventStream
from gateway.short_protocol import ShortcutProtocol, http_protocol
from gateway.stalls import StallWatch
from shared.settings import GatewaySettings, Settings, SseSettings

TIMEOUT = 30.0
REQUEST = b"GET / HTTP/1.1\r\nHost:a\r\n\r\n"


class Full(asyncio.Transport):
    """A transport with so much in it."""

    left = 100_000
    was_aborted = False

    def get_write_buffer_size(self) -> int:
        return self.left

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As a transport."""

    def write(self, data: Any) -> None:
        """What is in it is enough."""

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def is_closing(self) -> bool:
        return self.was_aborted

    def abort(self) -> None:
        self.was_aborted = True


class Server:
    """One connection whose client takes nothing, and the watch over it."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        async def application(scope: Any, receive: Any, send: Any) -> None:
            await answer()(scope, receive, send)

        self.clock = HandClock()
        self.watch = StallWatch(self.clock, TIMEOUT)
        self.transport = Full()
        config = Config(cast("Any", application), log_config=None, lifespan="off")
        config.load()
        made = cast("type[ShortcutProtocol]", http_protocol(GatewaySettings()))
        made.stalls = self.watch
        self.connection = made(config, ServerState(), {})
        self.connection.connection_made(self.transport)

    async def ask(self, *, is_full: bool = True) -> None:
        if is_full:
            self.connection.pause_writing()
        self.connection.data_received(REQUEST)
        await turns()

    async def look_after(self, seconds: float) -> None:
        self.clock.now += seconds
        await self.watch.look()


@asynccontextmanager
async def serving(answer: Callable[[], Any]) -> AsyncIterator[Server]:
    server = Server(answer)
    try:
        yield server
    finally:
        server.connection.connection_lost(None)
        await turns()
    assert not len(server.watch)


async def one_chunk() -> AsyncIterator[bytes]:
    yield b"data: 1\n\n"


def stream() -> EventStream:
    return EventStream(one_chunk(), settings=Settings())


def plain() -> Any:
    async def answer(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"1"})

    return answer


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("answer", [stream, plain])
async def test_who_takes_little_is_kept_and_who_takes_nothing_is_cut(answer: Callable[[], Any]) -> None:
    async with serving(answer) as server:
        await server.ask()
        for _ in range(10):
            server.transport.left -= 100
            await server.look_after(0.9 * TIMEOUT)
        assert not server.transport.was_aborted
        await server.look_after(0.9 * TIMEOUT)
        assert not server.transport.was_aborted
        await server.look_after(0.2 * TIMEOUT)
        assert server.transport.was_aborted


async def test_what_does_not_wait_is_not_watched() -> None:
    async with serving(stream) as server:
        await server.ask(is_full=False)
        assert len(server.watch) == 0
        server.connection.pause_writing()
        assert len(server.watch) == 1
        server.connection.resume_writing()
        assert len(server.watch) == 0


async def test_where_the_connection_cannot_be_seen_a_write_has_its_time() -> None:
    goes_on = asyncio.Event()
    answer = EventStream(one_chunk(), settings=Settings(sse=SseSettings(stall_timeout=1)))
    assert answer.send_timeout == 1
    answer.send_timeout = 0.01
    scope = {"type": "http", "method": "GET", "app": SimpleNamespace()}

    async def receive() -> Any:
        await goes_on.wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await goes_on.wait()

    with pytest.raises(SendTimeoutError):
        await answer(cast("Any", scope), receive, send)
