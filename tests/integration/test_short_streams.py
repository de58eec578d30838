"""The short way of event streams answers as the application does, byte for byte, and gives up nothing on the way."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cdrs_process import request, wait_until
from raw_http import request_bytes
from threaded_server import ThreadedServer, metric, publish, threaded_server

from gateway.hub import Hub
from gateway.short_streams import Connection, StreamShortcut, Visit

ONE = "/v1/streams/short.a/events"
SSE = {"Accept": "text/event-stream"}
COUNT = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedServer]:
    with threaded_server(tmp_path_factory.mktemp("short"), loop="uvloop", heartbeat=30) as running:
        publish(running, "short.a", COUNT)
        publish(running, "short.b", COUNT)
        yield running


@pytest.fixture(scope="module")
def cursor(server: ThreadedServer) -> str:
    """In the middle of short.a."""
    page = request(server.port, "GET", f"{ONE}?limit={COUNT // 2}", headers={"accept": "application/json"})
    found: str = page.json()["next"]
    return found


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the short way said to each request that was offered to it."""
    said: list[bool] = []
    begin = StreamShortcut.begin

    def noted(self: StreamShortcut, connection: Connection, visit: Visit) -> bool:
        said.append(begin(self, connection, visit))
        return said[-1]

    monkeypatch.setattr(StreamShortcut, "begin", noted)
    monkeypatch.setattr(Hub, "jittered_retry", lambda _self: 2000)
    return said


def answer(server: ThreadedServer, sent: bytes) -> bytes:
    """What comes until the stream is live, or to the answer's end."""
    data = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(sent)
        while b"cdrs.caught-up" not in data or not data.endswith(b"\n\n\r\n"):
            more = connection.recv(65536)
            data += more
            length = re.search(rb"content-length: ([0-9]+)", data)
            whole = length is not None and len(data) >= data.find(b"\r\n\r\n") + 4 + int(length[1])
            if not more or whole or data.endswith(b"0\r\n\r\n") or (b"content-encoding" in data and b"caught" in data):
                break
    return re.sub(rb"date: [^\r]+", b"date", data)


def get(target: str = ONE, headers: dict[str, str] | None = None) -> bytes:
    return request_bytes("GET", target, b"", SSE if headers is None else headers)


SHORT, LONG = "short", "long"
REQUESTS: dict[str, tuple[bytes, str]] = {
    "plain": (get(), SHORT),
    "no-accept": (get(headers={}), SHORT),
    "resumed": (get(headers=SSE | {"Last-Event-ID": "CURSOR"}), SHORT),
    "resumed-by-query": (get(ONE + "?last_event_id=CURSOR"), SHORT),
    "header-wins": (get(ONE + "?last_event_id=x", SSE | {"Last-Event-ID": "CURSOR"}), SHORT),
    "empty-header": (get(ONE + "?last_event_id=CURSOR", SSE | {"Last-Event-ID": ""}), SHORT),
    "two-last-ids": (get(headers=SSE | {"Last-Event-ID": "CURSOR", "last-event-id": "x"}), SHORT),
    "from-cursor": (get(ONE + "?from=CURSOR"), SHORT),
    "names-in-other-case": (f"GET {ONE} HTTP/1.1\r\nhOST:t\r\nlast-EVENT-id:CURSOR\r\n\r\n".encode(), SHORT),
    "several": (get("/v1/events?stream=short.a&stream=short.b"), SHORT),
    "pattern": (get("/v1/events?stream=short.%2A"), SHORT),
    "filter": (get(ONE + "?filter=%5B%7B%22exact%22%3A%7B%22type%22%3A%22event%22%7D%7D%5D&from=CURSOR"), SHORT),
    "data": (get(ONE + "?format=data&named=true&from=CURSOR"), SHORT),
    "gzip-alone": (get(headers=SSE | {"Accept-Encoding": "gzip, identity;q=0"}), SHORT),
    "gzip-off": (get(ONE + "?compression=off", SSE | {"Accept-Encoding": "gzip"}), SHORT),
    "close": (get(headers=SSE | {"Connection": "close"}), SHORT),
    "http-1.0": (get().replace(b"HTTP/1.1", b"HTTP/1.0"), SHORT),
    "cookies": (get(headers=SSE | {"Cookie": "a=b", "X-Forwarded-For": "10.0.0.1"}), SHORT),
    "earliest": (get(ONE + "?from=earliest"), LONG),
    "last": (get(ONE + "?from=-3"), LONG),
    "bad-cursor": (get(headers=SSE | {"Last-Event-ID": "nonsense"}), LONG),
    "other-epoch": (get(headers=SSE | {"Last-Event-ID": "AQEAAAABAQABdKNRlg"}), LONG),
    "no-such-stream": (get("/v1/streams/short.none/events"), LONG),
    "no-such-stream-close": (get("/v1/streams/short.none/events", SSE | {"Connection": "close"}), LONG),
    "origin": (get(headers=SSE | {"Origin": "http://example.org"}), LONG),
    "escaped-path": (get("/v1/streams/short%2Ea/events"), LONG),
    "page": (get(headers={"Accept": "application/json"}), LONG),
    "not-acceptable": (get(headers={"Accept": "image/png"}), LONG),
    "bad-parameter": (get(ONE + "?form=data"), LONG),
    "twice": (get(ONE + "?format=data&format=data"), LONG),
    "bad-stream": (get("/v1/streams/short..a/events"), LONG),
    "stream-in-both": (get(ONE + "?stream=short.b"), LONG),
    "nothing-named": (get("/v1/events"), LONG),
    "head": (get().replace(b"GET", b"HEAD"), LONG),
    "body": (request_bytes("GET", ONE, b"x", SSE), LONG),
    "two-hosts": (get(headers=SSE | {"host": "b"}), LONG),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_both_ways_answer_alike(
    server: ThreadedServer, cursor: str, taken: list[bool], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sent, way = REQUESTS[name]
    sent = sent.replace(b"CURSOR", cursor.encode())
    if way == LONG and name == "head":
        sent = sent.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answers = [answer(server, sent) for _ in range(2)]
    assert (True in taken, all(taken)) == ((True, True) if way == SHORT else (False, not taken))
    with monkeypatch.context() as changed:
        changed.setattr(StreamShortcut, "visit", lambda *_arguments, **_options: None)
        assert answers == [answer(server, sent)] * 2
    if b"\r\n\r\n" in answers[0] and b" 200 OK" in answers[0] and name not in {"page", "head"}:
        assert (b"cdrs.caught-up" in answers[0]) == (name != "head")


def test_what_was_missed_comes_once_and_in_order(server: ThreadedServer, cursor: str, taken: list[bool]) -> None:
    resumes = metric(server, 'cdrs_sse_resumes_total{result="ring"}')
    raw = answer(server, get(headers=SSE | {"Last-Event-ID": cursor}))
    numbers = [json.loads(line[6:])["data"]["n"] for line in raw.split(b"\n") if line.startswith(b'data: {"')]
    assert numbers == list(range(COUNT // 2, COUNT))
    assert taken == [True]
    assert metric(server, 'cdrs_sse_resumes_total{result="ring"}') == resumes + 1


def test_a_crowd_gets_in_whoever_leaves_or_sends_ahead(tmp_path: Path, taken: list[bool]) -> None:
    """More than get a turn at once: some go before theirs, some end their side, some have sent another request."""
    ahead = b"GET /livez HTTP/1.1\r\nHost: t\r\n\r\n"
    with threaded_server(tmp_path, loop="uvloop", heartbeat=0.3) as lively:
        publish(lively, "short.a", 1)
        connections = [socket.create_connection(("127.0.0.1", lively.port), timeout=10) for _ in range(200)]
        for number, connection in enumerate(connections):
            connection.sendall(get())
            if number % 4 == 1:
                connection.close()
            elif number % 4 == 2:
                connection.sendall(ahead)
            elif number % 4 == 3:
                connection.shutdown(socket.SHUT_WR)
        for number, connection in enumerate(connections):
            data = b""
            while number % 2 == 0 and b"cdrs.caught-up" not in data:
                data += connection.recv(65536)
            while number % 4 == 3 and connection.recv(65536):
                pass
            connection.close()
        assert any(taken)
        wait_until(lambda: not metric(lively, "cdrs_sse_connections"), 10, "everybody to be gone")


def test_a_stream_that_was_rotated_leaves_its_connection_to_others(tmp_path: Path, taken: list[bool]) -> None:
    with threaded_server(tmp_path, loop="uvloop", heartbeat=0.2, max_age=1.0) as brief:
        publish(brief, "short.a", 1)
        with socket.create_connection(("127.0.0.1", brief.port), timeout=10) as connection:
            for _ in range(2):
                connection.sendall(get())
                data = b""
                while not data.endswith(b"0\r\n\r\n"):
                    data += connection.recv(65536)
                assert b"cdrs.bye" in data
    assert taken == [True, True]
