"""What is left of a connection goes with it, and is not left to the collector, which would stop everything else."""

from __future__ import annotations

import gc
import http.client
import json
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from cdrs_process import wait_until
from following import Follower, all_gone
from threaded_server import ThreadedServer, publish, threaded_server

KINDS = frozenset({
    "ConfiguredProtocol", "RequestResponseCycle", "Request", "Subscription", "Subscriber", "FastConnection",
    "LingeringTransport", "TCPTransport", "HttpRequestParser", "EventPost", "LinesPost", "Submission",
})  # fmt: skip
STREAMS = ("Subscriber", "FastConnection")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThreadedServer]:
    """asyncio's own transports are in circles of their own."""
    with threaded_server(tmp_path, loop="uvloop", heartbeat=0.2, max_age=1.0) as running:
        publish(running, "left.one", 1)
        yield running


def alive() -> Counter[str]:
    return Counter(name for each in gc.get_objects() if (name := type(each).__name__) in KINDS)


def left(before: Counter[str]) -> Iterable[int]:
    return (alive() - before).values()


@contextmanager
def leaving_nothing() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        before = alive()
        yield
        # The hub's wheel still has the one it looked at last.
        wait_until(lambda: max(left(before), default=0) <= 1, 5, lambda: f"nothing: {alive() - before}")
    finally:
        gc.enable()


def test_streams_that_are_rotated_leave_nothing(server: ThreadedServer) -> None:
    Follower(server.port, "left.one").opened().close()
    all_gone(server)
    with leaving_nothing():
        followers = [Follower(server.port, "left.one") for _ in range(10)]
        for follower in followers:
            while follower.read():
                pass
            assert json.loads(follower.blocks[-1].data)["reason"] == "rotate"
        # The connections are the server's again, and the streams are gone.
        wait_until(lambda: all(alive()[kind] <= 1 for kind in STREAMS), 5, lambda: f"no stream: {alive()}")
        for follower in followers:
            follower.close()


def test_plain_connections_leave_nothing(server: ThreadedServer) -> None:
    with leaving_nothing():
        for _ in range(10):
            with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as client:
                for method, target, body, kind in (
                    ("GET", "/livez", None, "json"),
                    ("POST", "/v1/streams/left.one/events", "1", "json"),
                    ("POST", "/v1/streams/left.one/events?receipts=errors", "1", "json"),
                    ("POST", "/v1/streams/left.one/events", "1\n2\n", "x-ndjson"),
                    ("GET", "/nowhere", None, "json"),
                ):
                    client.request(method, target, body, headers={"content-type": f"application/{kind}"})
                    client.getresponse().read()


def test_connections_that_say_nothing_leave_nothing(server: ThreadedServer) -> None:
    with leaving_nothing():
        for sent in (b"", b"GET / HT", b"rubbish\r\n\r\n") * 2:
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
                client.sendall(sent)
