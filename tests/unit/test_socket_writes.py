"""Frames go from the hub into the socket, past the transport: none may overtake, be lost, or reach another client."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop
from hand_clock import HandClock

from gateway.fast import FastConnection
from gateway.sockets import NO_SOCKET
from gateway.stalls import StallWatch
from gateway.subscriber import Subscriber


class Rig:
    """A subscription over a real connection, and the client's end of it."""

    def __init__(self, connection: FastConnection, subscriber: Subscriber, client: socket.socket) -> None:
        self.connection, self.subscriber, self.client = connection, subscriber, client

    async def read(self, size: int) -> bytes:
        """Exactly so much, by the client."""
        got, loop = b"", asyncio.get_running_loop()
        while len(got) < size:
            got += await loop.sock_recv(self.client, size - len(got))
        return got

    def write(self, chunk: bytes) -> None:
        """As the hub does."""
        assert self.subscriber.ready
        self.subscriber.write(chunk)


@asynccontextmanager
async def connected() -> AsyncIterator[Rig]:
    ours, client = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
    client.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    origin = cast("Any", SimpleNamespace(lend=lambda _: None, forget=lambda _: None))
    hub = SimpleNamespace(stalls=StallWatch(HandClock(), 30), close=lambda *_: None, service=lambda _: None)
    connection = FastConnection(cast("Any", SimpleNamespace(hub=hub)), transport, origin, keep_alive=False)
    subscriber = Subscriber(connection, b"", remote="", now=0, expires=60, framed=True)
    subscriber.live = True
    connection.begin(subscriber, cast("Any", None), b"opening")
    with client:
        rig = Rig(connection, subscriber, client)
        assert await rig.read(12) == b"7\r\nopening\r\n"
        yield rig
        transport.abort()
        await asyncio.sleep(0)


Scenario = Callable[[Rig], Awaitable[None]]
Player = Callable[[Scenario], None]


@pytest.fixture(params=["uvloop", "asyncio"])
def played(request: pytest.FixtureRequest) -> Iterator[Player]:
    """Plays a scenario over a connection, on either event loop."""

    async def play(scenario: Scenario) -> None:
        async with connected() as rig, asyncio.timeout(20):
            await scenario(rig)

    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield lambda scenario: runner.run(play(scenario))


def test_what_the_kernel_does_not_take_follows_in_order(played: Player) -> None:
    async def scenario(rig: Rig) -> None:
        assert rig.subscriber.socket != NO_SOCKET
        sent = b""
        while rig.subscriber.ready:
            chunk = os.urandom(1500)
            sent += chunk
            rig.write(chunk)
        assert rig.subscriber.socket == NO_SOCKET, "what waits in the transport would be overtaken"
        assert len(rig.connection._context.hub.stalls) == 1
        assert await rig.read(len(sent)) == sent
        while not rig.subscriber.ready:
            await asyncio.sleep(0)
        assert rig.subscriber.socket != NO_SOCKET
        rig.write(b"more")
        assert await rig.read(4) == b"more"

    played(scenario)


def test_it_goes_past_the_transport(played: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(rig: Rig) -> None:
        monkeypatch.setattr(FastConnection, "write", lambda *_: pytest.fail("the writer was asked"))
        rig.write(b"event")
        assert await rig.read(5) == b"event"

    played(scenario)


def test_of_a_connection_that_is_gone_no_descriptor_is_left(played: Player) -> None:
    async def scenario(rig: Rig) -> None:
        descriptor = rig.subscriber.socket
        lost, closed = rig.connection.connection_lost, list[bool]()

        def connection_lost(exc: Exception | None) -> None:
            lost(exc)
            os.fstat(descriptor)  # still ours: no other connection can have had this number meanwhile
            closed.append(rig.subscriber.socket == NO_SOCKET)

        protocol = SimpleNamespace(connection_lost=connection_lost)
        rig.connection._transport.set_protocol(cast("Any", protocol))
        rig.connection._transport.abort()
        while not closed:
            await asyncio.sleep(0)
        assert closed == [True]
        assert not rig.subscriber.ready

    played(scenario)


def test_a_client_that_has_gone_is_found_by_the_transport(played: Player) -> None:
    async def scenario(rig: Rig) -> None:
        rig.client.close()
        while not rig.connection.is_over:
            if rig.subscriber.ready:
                rig.write(b"x" * 1000)
            await asyncio.sleep(0)
        assert rig.subscriber.socket == NO_SOCKET

    played(scenario)


def test_an_ended_stream_gives_its_descriptor_back(played: Player) -> None:
    async def scenario(rig: Rig) -> None:
        rig.connection.finish(b"bye")
        assert not rig.subscriber.ready
        assert await rig.read(13) == b"3\r\nbye\r\n0\r\n\r\n"

    played(scenario)
