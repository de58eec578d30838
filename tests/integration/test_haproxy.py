"""HAProxy with the configuration we ship, in front of gateways that die, drain, are not there, or answer badly."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cdrs_process import Answer, CdrsProcess, free_port, request, wait_until
from haproxy import HaProxy
from raw_http import connected
from sse_socket import BodyReader, EventStreamParser, Subscriber
from write_paths import each_path, portable_slow

pytestmark = pytest.mark.timeout(120)

ORIGIN = "http://page.example"
SUBSCRIBE = "/v1/events?stream=edge.a"
PRODUCE = "/v1/streams/edge.a/events"
JSON = {"content-type": "application/json"}


class BadGateway:
    """Passes its checks; ends every other connection after the request, without an answer."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            head = client.recv(65_536)
            if head.startswith(b"GET /readyz"):
                client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
            else:
                while head.startswith(b"POST") and not head.endswith(b"\r\n\r\n1"):
                    head += client.recv(65_536)
                self.requests.append(head)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def bad() -> Iterator[BadGateway]:
    gateway = BadGateway()
    yield gateway
    gateway.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[CdrsProcess]]:
    """Two gateways of one data folder, and a node."""
    data = ["--data", str(tmp_path / "data")]
    env = {"CDRS_GATEWAY__DRAIN_DELAY": "2.5"}
    node = CdrsProcess(tmp_path / "node", data, role="node")
    gateways = [CdrsProcess(tmp_path / f"gateway-{n}", data, role="gateway", env=env) for n in (1, 2)]
    try:
        for each in (node, *gateways):
            each.start(wait=False)
        for each in (node, *gateways):
            each.wait_ready()
        yield gateways
    finally:
        for each in (*gateways, node):
            each.stop()


def subscribe(port: int) -> Answer:
    return request(port, "GET", SUBSCRIBE, headers={"accept": "text/event-stream", "origin": ORIGIN})


def check_retry_stream(answer: Answer) -> int:
    """An event stream that any page may read, with nothing in it but when to come again."""
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert "no-store" in answer.headers["cache-control"]
    parser = EventStreamParser()
    assert not parser.feed(answer.body)
    assert parser.retry_ms is not None
    assert 500 <= parser.retry_ms <= 5000
    return parser.retry_ms


@pytest.mark.slow
def test_without_a_gateway_browsers_are_told_when_to_come_again(tmp_path: Path) -> None:
    with HaProxy(tmp_path, [free_port(), free_port()]) as haproxy:
        waits = {check_retry_stream(subscribe(haproxy.port)) for _ in range(4)}
        assert len(waits) > 1, "all of them would come back in one instant"
        answer = request(haproxy.port, "POST", PRODUCE, b"1", JSON)
        assert answer.status == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["type"] == "/problems/unavailable"


async def test_a_request_without_an_answer_goes_again_only_where_that_adds_nothing(
    tmp_path: Path, bad: BadGateway
) -> None:
    with HaProxy(tmp_path, [bad.port, bad.port]) as haproxy:
        wait_until(lambda: haproxy.ready(2), 10, "the checks pass")

        async def sent(method: str, path: str, body: bytes = b"", **headers: str) -> int:
            bad.requests.clear()
            named = {k.replace("_", "-"): v for k, v in headers.items()} | JSON
            async with connected(haproxy.port) as connection:  # head and body in one piece, as most clients send them
                answer = await connection.request(method, path, body, named)
            assert (answer.status, answer.problem) == (502, "outcome-unknown")
            assert answer.headers["retry-after"] == "1"
            return len(bad.requests)

        assert await sent("POST", PRODUCE, b"1") == 1
        assert await sent("PUT", "/v1/streams/edge.a") == 1
        assert await sent("DELETE", "/v1/streams/edge.a") == 1
        assert await sent("POST", PRODUCE, b"1", ce_id="7") > 1
        assert await sent("POST", PRODUCE, b"1", idempotency_key='"7"') > 1
        assert await sent("GET", "/v1/streams") > 1
        check_retry_stream(await asyncio.to_thread(subscribe, haproxy.port))


@portable_slow
def test_a_killed_gateway_costs_producers_nothing_and_subscribers_a_reconnect(
    tmp_path: Path, pair: list[CdrsProcess]
) -> None:
    with HaProxy(tmp_path / "haproxy", [each.port for each in pair]) as haproxy:
        wait_until(lambda: haproxy.ready(2), 10, "the checks pass")
        with Subscriber(haproxy.port, "edge.a") as one, Subscriber(haproxy.port, "edge.a") as two:
            pair[0].kill()
            for number in range(50):
                answer = haproxy.publish("edge.a", b"%d" % number)
                assert answer.status == 201, answer
            for each in (one, two):
                each.wait_count(50, 20)
                assert each.statuses == [200] * each.connections
            assert one.connections + two.connections == 3, "event streams were not balanced"


@portable_slow
def test_a_draining_gateway_loses_no_request(tmp_path: Path, pair: list[CdrsProcess]) -> None:
    with HaProxy(tmp_path / "haproxy", [each.port for each in pair]) as haproxy:
        wait_until(lambda: haproxy.ready(2), 10, "the checks pass")
        with Subscriber(haproxy.port, "edge.a") as one, Subscriber(haproxy.port, "edge.a") as two:
            pair[0].signal(signal.SIGTERM)
            assert pair[0].process is not None
            sent = 0
            while pair[0].process.poll() is None:
                answer = haproxy.publish("edge.a", b"%d" % sent)
                assert answer.status == 201, answer
                sent += 1
            assert pair[0].wait(5) == 0
            assert haproxy.publish("edge.a", b"%d" % sent).status == 201
            for each in (one, two):
                each.wait_count(sent + 1, 20)
                assert each.statuses == [200] * each.connections
                assert [json.loads(b.data)["data"] for b in each.blocks] == list(range(sent + 1))
            assert set(one.ends + two.ends) <= {"clean"}, "a drain ends streams with a bye"


def test_gateways_that_are_not_ready_say_so_themselves(tmp_path: Path) -> None:
    """Better than HAProxy could: what is missing; and a browser gets a stream."""
    data = ["--data", str(tmp_path / "data")]
    gateways = [CdrsProcess(tmp_path / f"gateway-{n}", data, role="gateway") for n in (1, 2)]
    try:
        for each in gateways:
            each.start(wait=False)
        for each in gateways:  # no node: they open their door only after a while
            wait_until(lambda port=each.port: answers(port), 30, "a gateway answers")
        with HaProxy(tmp_path / "haproxy", [each.port for each in gateways]) as haproxy:
            wait_until(lambda: haproxy.ready(0), 10, "the checks fail")
            answer = request(haproxy.port, "GET", "/readyz?verbose")
            assert answer.status == 503
            assert not answer.json()["checks"]["log"]["ok"]
    finally:
        for each in gateways:
            each.stop()


def answers(port: int) -> bool:
    try:
        return request(port, "GET", "/livez", timeout=2).status == 200
    except OSError:
        return False


def test_operators_get_health_statistics_and_metrics(tmp_path: Path) -> None:
    with HaProxy(tmp_path, [free_port(), free_port()]) as haproxy:
        assert request(haproxy.stats_port, "GET", "/healthz").status == 200
        assert b"gateway-1" in request(haproxy.stats_port, "GET", "/stats").body
        assert b"haproxy_server_status" in request(haproxy.stats_port, "GET", "/metrics").body
        assert request(haproxy.port, "GET", "/stats").status == 503, "operators' pages have a port of their own"


@each_path
def test_streams_in_gzip_pass_untouched_and_at_once(tmp_path: Path) -> None:
    env = {"CDRS_SSE__COMPRESSION_READERS": "1"}
    with CdrsProcess(tmp_path / "cdrs", env=env).start() as cdrs, HaProxy(tmp_path, [cdrs.port] * 2) as haproxy:
        wait_until(lambda: haproxy.ready(2), 10, "the checks pass")
        with socket.create_connection(("127.0.0.1", haproxy.port), timeout=10) as client:
            fields = "Host: test\r\nAccept: text/event-stream\r\nAccept-Encoding: gzip, br"
            client.sendall(f"GET {SUBSCRIBE} HTTP/1.1\r\n{fields}\r\n\r\n".encode())
            body, inflater, parser = BodyReader(), zlib.decompressobj(31), EventStreamParser()
            seen: list[bytes] = []

            def read_until(wanted: bytes) -> None:
                while not seen or wanted not in seen[-1]:
                    data = client.recv(65_536)
                    assert data, seen[-3:]
                    text = inflater.decompress(body.feed(data))
                    seen.extend(block.event + block.data for block in parser.feed(text))

            read_until(b"cdrs.caught-up")
            assert body.headers["content-encoding"] == "gzip"
            assert body.headers["vary"] == "Accept-Encoding"
            for number in range(40):  # each is here before the next one is sent, whether stored or deflated
                assert request(haproxy.port, "POST", PRODUCE, b'{"number":%d}' % number, JSON).status == 201
                read_until(b'{"number":%d}' % number)
        text = request(cdrs.port, "GET", "/metrics").body.decode()
        assert "cdrs_sse_gzip_events_total 0" not in text, "none was deflated"
