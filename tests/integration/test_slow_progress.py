"""Who takes little is kept as long as it takes something, who takes nothing has an end, and the kernel is told as much:
on both write paths."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from cdrs_process import wait_until
from following import Follower, all_gone, following
from threaded_server import ThreadedServer, metric, publish, threaded_server

from gateway.protocol import CdrsHttpProtocol
from gateway.sockets import ANSWER_SEND_BUFFER, SEND_BUFFER

STALL_TIMEOUT = 2.0
COUNT = 200


@pytest.fixture(scope="module")
def server(write_path: str, loop: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedServer]:
    sse = {"write_path": write_path, "stall_timeout": STALL_TIMEOUT, "backlog_bytes": 65536}
    with threaded_server(tmp_path_factory.mktemp("slow"), loop=loop, **sse) as running:
        yield running


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Transport]:
    """All connections that the server is given."""
    made: list[asyncio.Transport] = []
    plain = CdrsHttpProtocol.connection_made

    def connection_made(self: CdrsHttpProtocol, transport: asyncio.Transport) -> None:
        made.append(transport)
        plain(self, transport)

    monkeypatch.setattr(CdrsHttpProtocol, "connection_made", connection_made)
    return made


def test_who_takes_little_is_kept(server: ThreadedServer) -> None:
    with closing(Follower(server.port, "slow.kept", room=4096).opened()) as slow:
        publish(server, "slow.kept", COUNT, pad="x" * 2000)
        end = time.monotonic() + 2.5 * STALL_TIMEOUT
        while time.monotonic() < end:  # far less in that time than a server waits for before it writes on
            assert slow.read(1024)
            time.sleep(STALL_TIMEOUT / 20)
        assert len(slow.numbers) < COUNT / 2
        while len(slow.numbers) < COUNT:
            assert slow.read()
        assert slow.numbers == list(range(COUNT))
    all_gone(server)


@pytest.mark.parametrize("query", ["", "?from=earliest"])
def test_the_kernel_keeps_little_and_not_for_long(
    server: ThreadedServer, write_path: str, made: list[asyncio.Transport], query: str
) -> None:
    publish(server, "slow.options", 1)
    made.clear()
    with following(server, "slow.options", query=query) as follower:
        follower.opened()
        (transport,) = made
        sock = transport.get_extra_info("socket")
        bound = SEND_BUFFER if write_path == "fast" else ANSWER_SEND_BUFFER
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * bound, "Linux counts it twice"
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == STALL_TIMEOUT * 1000
    all_gone(server)


def test_half_closed_and_reading_nothing_has_an_end(
    write_path: str,
    loop: str,
    made: list[asyncio.Transport],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setattr("gateway.lingering.CLOSE_TIMEOUT", 0.3)
    sse = {"write_path": write_path, "stall_timeout": 60}  # nor does the kernel end it
    with threaded_server(tmp_path_factory.mktemp("half"), loop=loop, **sse) as server:
        made.clear()
        with closing(Follower(server.port, "slow.half", room=4096).opened()) as half:
            (transport,) = made
            publish(server, "slow.half", COUNT, pad="x" * 2000)
            wait_until(transport.get_write_buffer_size, 10, "a write that waits")
            half.socket.shutdown(socket.SHUT_WR)
            wait_until(lambda: metric(server, "cdrs_sse_connections ") == 0, 10, "the stream to be counted out")
            wait_until(lambda: not transport.get_write_buffer_size(), 10, "the end of the connection")
