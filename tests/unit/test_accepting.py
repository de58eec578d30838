"""The acceptor: a crowd is taken some a turn, and nobody is lost when it closes."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import cast

import pytest
import uvloop

from gateway import accepting
from gateway.accepting import Acceptor

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]
CROWD = 100


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=CROWD) as server:
        server.setblocking(False)
        yield server


class Hall:
    """Makes protocols and counts whom they are connected to."""

    def __init__(self) -> None:
        self.turn = 0
        self.made: list[int] = []
        self.transports: list[asyncio.BaseTransport] = []

    def protocol(self) -> asyncio.Protocol:
        self.made.append(self.turn)
        hall = self

        class Guest(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                hall.transports.append(transport)

        return Guest()

    async def turns_until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.transports) < count:
                self.turn += 1
                await asyncio.sleep(0)

    def close(self) -> None:
        for transport in self.transports:
            cast("asyncio.Transport", transport).abort()


def crowd(listener: socket.socket, count: int = CROWD) -> list[socket.socket]:
    return [socket.create_connection(listener.getsockname()) for _ in range(count)]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_crowd_is_taken_some_a_turn(loop: Callable[[], asyncio.AbstractEventLoop], listener: socket.socket) -> None:
    async def run() -> None:
        hall, clients = Hall(), crowd(listener)
        acceptor = Acceptor([listener], hall.protocol, per_turn=8)
        await hall.turns_until(CROWD)
        await acceptor.close()
        most = max(Counter(hall.made).values())
        assert 2 <= most <= 16  # two turns of the loop's may fall between two of ours
        hall.close()
        for client in clients:
            client.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


async def test_whoever_was_taken_is_connected_when_it_has_closed(listener: socket.socket) -> None:
    hall, clients = Hall(), crowd(listener, 20)
    acceptor = Acceptor([listener], hall.protocol, per_turn=4)
    while not hall.made:
        await asyncio.sleep(0)
    await acceptor.close()
    await acceptor.close()
    taken = len(hall.made)
    assert 0 < len(hall.transports) == taken < 20
    await asyncio.sleep(0.05)
    assert len(hall.made) == taken
    hall.close()
    for client in clients:
        client.close()


async def test_where_there_are_nearly_too_many_they_come_one_by_one(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "CROWDED_PAUSE", 0.02)
    hall, clients = Hall(), crowd(listener, 8)
    started = asyncio.get_running_loop().time()
    acceptor = Acceptor([listener], hall.protocol, is_crowded=lambda more: len(hall.transports) + more >= 4)
    await hall.turns_until(8)
    assert asyncio.get_running_loop().time() - started >= 4 * 0.02
    await acceptor.close()
    hall.close()
    for client in clients:
        client.close()


async def test_without_a_descriptor_left_it_waits_and_goes_on(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "PAUSE", 0.05)
    fails = [True, True]

    class Scarce(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            if fails:
                fails.pop()
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    hall, clients = Hall(), crowd(listener, 3)
    with Scarce(fileno=socket.dup(listener.fileno())) as scarce:
        scarce.setblocking(False)
        acceptor = Acceptor([scarce], hall.protocol)
        async with asyncio.timeout(10):
            while len(hall.transports) < 3:
                await asyncio.sleep(0.01)
        await acceptor.close()
    assert not fails
    hall.close()
    for client in clients:
        client.close()


async def test_a_protocol_that_cannot_be_made_ends_only_its_own_connection(listener: socket.socket) -> None:
    hall, clients = Hall(), crowd(listener, 2)
    broken = [True]

    def make() -> asyncio.Protocol:
        if broken:
            broken.clear()
            raise RuntimeError("canary")
        return hall.protocol()

    acceptor = Acceptor([listener], make)
    await hall.turns_until(1)
    await acceptor.close()
    assert len(hall.transports) == 1
    hall.close()
    for client in clients:
        client.close()
