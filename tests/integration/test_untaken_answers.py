"""Clients that do not take an answer and go on all the same: no more of theirs is kept than of others."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cdrs_process import wait_until
from threaded_server import ThreadedServer, metric, publish, threaded_server

from gateway import lingering
from gateway.fast import FastConnection
from gateway.protocol import CdrsHttpProtocol
from gateway.watched import WRITE_BUFFER


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Transport]:
    """All connections that the server is given, each with a small buffer in the kernel."""
    made: list[asyncio.Transport] = []
    plain = CdrsHttpProtocol.connection_made

    def connection_made(self: CdrsHttpProtocol, transport: asyncio.Transport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        made.append(transport)
        plain(self, transport)

    monkeypatch.setattr(CdrsHttpProtocol, "connection_made", connection_made)
    return made


@pytest.fixture
def server(tmp_path: Path, made: list[asyncio.Transport]) -> Iterator[ThreadedServer]:
    with threaded_server(tmp_path, loop="uvloop", backlog_bytes=65536) as running:
        publish(running, "untaken", 300, pad="x" * 1000)
        made.clear()
        yield running


def asking(server: ThreadedServer, target: str) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    client.settimeout(10)
    client.connect(("127.0.0.1", server.port))
    client.sendall(request(target))
    return client


def request(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: test\r\nAccept: application/json\r\n\r\n".encode()


def test_half_closed_it_is_closed_in_time(
    server: ThreadedServer, made: list[asyncio.Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lingering, "CLOSE_TIMEOUT", 0.3)
    with asking(server, "/openapi.json") as client:
        wait_until(lambda: made and made[0].get_write_buffer_size(), 10, "an answer that waits")
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: not made[0].get_write_buffer_size(), 10, "its end")


def test_a_stream_behind_it_is_not_written_into_memory(
    server: ThreadedServer, made: list[asyncio.Transport], caplog: pytest.LogCaptureFixture
) -> None:
    with asking(server, "/v1/streams/untaken/events?limit=5") as client:
        wait_until(lambda: made and made[0].get_write_buffer_size(), 10, "an answer that waits")
        before = made[0].get_write_buffer_size()
        assert before < WRITE_BUFFER, "else uvicorn itself waits, and the stream is not taken over"
        stream = b"GET /v1/streams/untaken/events?from=earliest HTTP/1.1\r\nHost: test\r\n\r\n"
        client.sendall(stream)
        wait_until(lambda: metric(server, "cdrs_sse_connections ") == 1, 10, "the stream")
        (connection,) = [each for each in gc.get_objects() if isinstance(each, FastConnection)]
        publish(server, "untaken", 300, first=300, pad="x" * 1000)
        assert not connection.ready
        assert made[0].get_write_buffer_size() < before + 8192, "its head and opening, and none of its history"
    assert not caplog.records
