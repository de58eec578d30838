"""Large answers, and clients that do not read them: plain sockets on the client's side, the server in a thread."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cdrs_process import Answer, request, wait_until
from threaded_server import ThreadedServer, metric, publish, threaded_server

from gateway import ahead, lingering, pages
from gateway.lingering import LingeringTransport
from gateway.protocol import CdrsHttpProtocol
from gateway.sockets import ANSWER_SEND_BUFFER, NARROW, NARROW_SENDING, SO_BUF_LOCK, SO_RCVBUF_LOCK, USUAL, unread

COUNT = 1000
JSON = {"accept": "application/json"}
PAGE = "/v1/streams/large/events?limit=1000"
SLOW_TO_CUT = 60.0
"""Of `sse.stall_timeout`: longer than a test waits."""


@pytest.fixture
def transports() -> list[asyncio.Transport]:
    """Theirs."""
    return []


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, transports: list[asyncio.Transport]) -> list[CdrsHttpProtocol]:
    """All connections that the server is given."""
    made: list[CdrsHttpProtocol] = []
    plain = CdrsHttpProtocol.connection_made

    def connection_made(self: CdrsHttpProtocol, transport: asyncio.Transport) -> None:
        made.append(self)
        transports.append(transport)
        plain(self, transport)

    monkeypatch.setattr(CdrsHttpProtocol, "connection_made", connection_made)
    return made


@pytest.fixture(params=["uvloop", pytest.param("asyncio", marks=pytest.mark.slow)])
def server(
    request: pytest.FixtureRequest, tmp_path: Path, made: list[CdrsHttpProtocol], transports: list[asyncio.Transport]
) -> Iterator[ThreadedServer]:
    with threaded_server(tmp_path, loop=request.param, stall_timeout=SLOW_TO_CUT) as running:
        publish(running, "large", COUNT, pad="x" * 400)
        made.clear(), transports.clear()
        yield running


def connected(server: ThreadedServer, *, timeout: float = 10) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(timeout)
    client.connect(("127.0.0.1", server.port))
    return client


def get(target: str, accept: str = "application/json") -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: test\r\nAccept: {accept}\r\n\r\n".encode()


def waiting(made: list[CdrsHttpProtocol]) -> int:
    """Bytes before the kernel's buffer, of the first connection."""
    return made[0].transport.get_write_buffer_size() if made else 0


def everything(client: socket.socket) -> bytes:
    got = bytearray()
    while data := client.recv(65536):
        got += data
    return bytes(got)


def unchunked(answer: bytes) -> bytes:
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    body = bytearray()
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert rest == b"\r\n"
            return bytes(body)
        body += rest[:length]
        rest = rest[length + 2 :]


# --- pages -----------------------------------------------------------------------------------------


def page(server: ThreadedServer, target: str = PAGE, method: str = "GET") -> Answer:
    return request(server.port, method, target, headers=JSON)


def test_a_large_page_is_the_same_in_pieces(server: ThreadedServer) -> None:
    answer = page(server)
    assert "content-length" not in answer.headers
    whole = json.loads(answer.body)
    assert list(whole) == ["events", "next", "at_end", "gap", "gaps"]
    assert [item["event"]["data"]["n"] for item in whole["events"]] == list(range(COUNT))
    assert whole["next"] == whole["events"][-1]["cursor"]
    assert whole["at_end"]
    first = page(server, f"{PAGE}0".replace("10000", "999"))
    rest = page(server, f"/v1/streams/large/events?from={json.loads(first.body)['next']}")
    assert json.loads(first.body)["events"] + json.loads(rest.body)["events"] == whole["events"]
    assert int(rest.headers["content-length"]) == len(rest.body)


def test_the_head_of_a_page_has_nothing_behind_it(server: ThreadedServer) -> None:
    with connected(server) as client:
        client.sendall(get(PAGE).replace(b"GET", b"HEAD") + get("/livez"))
        got = b""
        while got.count(b"HTTP/1.1 200 OK") < 2:
            got += client.recv(65536)
    assert b'"events"' not in got


def test_of_a_page_that_is_not_read_little_is_held_and_then_all_of_it_comes(
    server: ThreadedServer, made: list[CdrsHttpProtocol]
) -> None:
    whole = page(server).body
    made.clear()
    with connected(server) as client:
        client.sendall(get(PAGE).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        wait_until(lambda: waiting(made), 10, "a piece that waits")
        sock = made[0].transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * ANSWER_SEND_BUFFER, "Linux counts it twice"
        before = made[0].outstanding()
        assert json.loads(page(server, "/v1/streams/large/events?limit=1").body)["events"], (
            "others are not kept waiting"
        )
        assert waiting(made) < 2 * pages.PIECE
        assert made[0].outstanding() == before < 2 * ANSWER_SEND_BUFFER + 2 * pages.PIECE
        assert unchunked(everything(client)) == whole


def test_who_takes_nothing_of_a_page_is_cut(tmp_path: Path, made: list[CdrsHttpProtocol]) -> None:
    with threaded_server(tmp_path, loop="uvloop", stall_timeout=1.0) as server:
        publish(server, "large", COUNT, pad="x" * 400)
        made.clear()
        with connected(server) as client:
            client.sendall(get(PAGE))
            wait_until(lambda: waiting(made), 10, "a piece that waits")
            connection = made[0]
            wait_until(lambda: connection not in connection.server_state.connections, 10, "the cut")
            wait_until(lambda: not [name for name in server.tasks() if "wrap" in name], 10, "the end of its tasks")


# --- clients that send without end -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "accept"),
    [(PAGE, "application/json"), ("/v1/streams/large/events?from=earliest", "text/event-stream")],
    ids=["page", "stream"],
)
@pytest.mark.parametrize("way", ["along", "behind"])
def test_of_who_sends_without_end_and_reads_nothing_little_is_held(
    server: ThreadedServer,
    made: list[CdrsHttpProtocol],
    transports: list[asyncio.Transport],
    target: str,
    accept: str,
    way: str,
) -> None:
    with connected(server, timeout=1) as client:
        client.sendall(get(target, accept) + (posts(range(600)) if way == "along" else b""))
        wait_until(lambda: transports, 10, "the connection")
        if way == "behind":
            wait_until(transports[0].get_write_buffer_size, 10, "a piece that waits")
        # It is cut where much had come before it was seen not to read; else the kernel takes no more of it.
        ends: type[OSError] = ConnectionError if way == "along" else TimeoutError if target == PAGE else OSError
        with pytest.raises(ends):
            send_without_end(client)
        assert transports[0].is_closing() or unread(transports[0]) < 100_000
        assert sum(len(each._behind) for each in made) < ahead.UNREAD
    wait_until(lambda: metric(server, "cdrs_sse_connections ") == 0, 10, "the stream to be counted out")


def send_without_end(client: socket.socket) -> None:
    while True:
        client.sendall(posts(range(100)))


def posts(numbers: range) -> bytes:
    body = b'{"n":%d}'
    return b"".join(post("posted", "application/json", body % n) for n in numbers)


def post(stream: str, media: str, body: bytes) -> bytes:
    line, length = f"POST /v1/streams/{stream}/events HTTP/1.1", len(body)
    return f"{line}\r\nHost: test\r\nContent-Type: {media}\r\nContent-Length: {length}\r\n\r\n".encode() + body


def room(sock: socket.socket) -> tuple[int, int]:
    """What the kernel may hold of what the client sends, and of the answers; Linux counts both twice."""
    which = socket.SO_RCVBUF, socket.SO_SNDBUF
    received, sent = (sock.getsockopt(socket.SOL_SOCKET, each) for each in which)
    return received, sent


def test_who_sends_all_and_then_reads_gets_all_answers(server: ThreadedServer, made: list[CdrsHttpProtocol]) -> None:
    count = 1500
    with connected(server) as client:
        client.sendall(posts(range(count)))
        wait_until(lambda: waiting(made), 10, "answers that wait")
        connection, sock = made[0], made[0].transport.get_extra_info("socket")
        wait_until(lambda: room(sock) == (2 * NARROW, 2 * NARROW_SENDING), 10, "a narrow receiver")
        got = b""
        while got.count(b'"duplicate":') < count:
            got += client.recv(65536)
        wait_until(lambda: not connection.flow.write_paused, 10, "an end of waiting")
        received, sent = room(sock)
        assert received > 2 * NARROW
        assert sent == 2 * ANSWER_SEND_BUFFER
    found = re.findall(rb'"id":"([^"]+)"', got)
    assert len(set(found)) == count


@pytest.fixture
def narrowed(monkeypatch: pytest.MonkeyPatch) -> list[CdrsHttpProtocol]:
    """Connections that were made to receive little, each as often as it was."""
    narrowed: list[CdrsHttpProtocol] = []
    plain = CdrsHttpProtocol._narrow

    def narrow(self: CdrsHttpProtocol) -> None:
        narrowed.append(self)
        plain(self)

    monkeypatch.setattr(CdrsHttpProtocol, "_narrow", narrow)
    return narrowed


@pytest.mark.parametrize("way", ["application", "short", "cut"])
def test_of_who_is_far_ahead_and_does_not_read_little_is_received_until_it_does(
    server: ThreadedServer, made: list[CdrsHttpProtocol], narrowed: list[CdrsHttpProtocol], way: str
) -> None:
    count, got = 2000, b""
    if way != "application":  # to an unknown stream the first one, and with it what comes behind, is the application's
        publish(server, "posted", 1)
        made.clear()
    requests = posts(range(count))
    with connected(server) as client:
        client.sendall(requests[: -40 if way == "cut" else None])
        wait_until(lambda: narrowed, 10, "a narrow receiver")
        while got.count(b'"duplicate":') < count - (way == "cut"):
            got += client.recv(65536)
        if way == "cut":
            client.sendall(requests[-40:])
            while got.count(b'"duplicate":') < count:
                got += client.recv(65536)
        sock = made[0].transport.get_extra_info("socket")
        wait_until(lambda: room(sock) == (2 * USUAL, 2 * ANSWER_SEND_BUFFER), 10, "the usual room")


def test_a_stream_may_be_asked_for_behind_many_posts(
    server: ThreadedServer, made: list[CdrsHttpProtocol], caplog: pytest.LogCaptureFixture
) -> None:
    count, got = 1000, b""
    publish(server, "posted", 1)
    with connected(server) as client:
        client.sendall(posts(range(count)) + get("/v1/streams/large/events", "text/event-stream"))
        while b"text/event-stream" not in got:
            got += client.recv(65536)
        assert got.count(b'"duplicate":') == count
        publish(server, "large", 1)
        while b"data: " not in got:
            got += client.recv(65536)
    assert not [entry for entry in caplog.records if entry.levelname == "ERROR"]


def test_a_large_body_is_received_as_fast_as_it_comes(server: ThreadedServer, made: list[CdrsHttpProtocol]) -> None:
    with connected(server) as client:
        client.sendall(post("posted", "application/x-ndjson", b'{"n":1}\n' * 100))
        client.recv(1)
        sock = made[0].transport.get_extra_info("socket")
        bounded = sock.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK) & SO_RCVBUF_LOCK
        request = post("posted", "application/x-ndjson", b'{"n":"%b"}\n' % (b"x" * 500) * 400)
        for start in range(0, len(request), 1000):  # as it comes from afar
            client.sendall(request[start : start + 1000])
        client.recv(1)
        wait_until(lambda: not sock.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK) & SO_RCVBUF_LOCK, 10, "a free buffer")
    assert bounded


# --- the last answer -------------------------------------------------------------------------------


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> list[CdrsHttpProtocol]:
    """Connections that know that the server leaves."""
    leaving: list[CdrsHttpProtocol] = []
    plain = CdrsHttpProtocol.shutdown

    def shutdown(self: CdrsHttpProtocol) -> None:
        plain(self)
        leaving.append(self)

    monkeypatch.setattr(CdrsHttpProtocol, "shutdown", shutdown)
    return leaving


def check_last(answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.split(b"\r\n")
    (length,) = re.findall(rb"content-length: (\d+)", head)
    assert len(body) == int(length)


def test_the_last_answer_has_its_time_whatever_comes_meanwhile(
    server: ThreadedServer,
    made: list[CdrsHttpProtocol],
    leaving: list[CdrsHttpProtocol],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[LingeringTransport] = []
    plain = LingeringTransport._has_lingered

    def has_lingered(self: LingeringTransport) -> None:
        looks.append(self)
        plain(self)

    monkeypatch.setattr(LingeringTransport, "_has_lingered", has_lingered)
    monkeypatch.setattr(lingering, "LINGER", 0.05)
    item = b'{"specversion":"1.0","id":"%d","source":"/test","type":"a","data":1}'
    batch = b"[" + b",".join(item % n for n in range(1500)) + b"]"
    asked = post("batched", "application/cloudevents-batch+json", batch)
    with connected(server) as client:
        client.sendall(asked[:-1])
        wait_until(lambda: made and made[0].cycle is not None, 10, "the request")
        server.drain()
        wait_until(lambda: made[0] in leaving, 10, "word of the end")
        client.sendall(asked[-1:])
        wait_until(lambda: waiting(made), 10, "an answer that waits")
        client.sendall(posts(range(1000)))
        wait_until(lambda: len(looks) > 2, 10, "looks at what was taken")
        got = everything(client)
    check_last(got)
    assert got.count(b'"duplicate"') == 1500
    server.thread.join(15)
    assert not server.thread.is_alive()
