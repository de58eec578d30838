"""A process that comes near its limit of descriptors: the newest are sent away in words, nobody else feels it."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cdrs_process import CdrsProcess, request, wait_until
from write_paths import each_path

from gateway.accepting import ACCEPTS_A_TURN
from shared.descriptors import Room, room

pytestmark = pytest.mark.timeout(60)

REQUEST = b"GET /v1/streams/near.limit/events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n"
LIMIT = 200
ROOM = Room(streams=124, served=128, most=132)


def limited(limit: str) -> list[str]:
    return ["bash", "-c", f'ulimit {limit}; exec "$@"', "-"]


@pytest.fixture
def cdrs(tmp_path: Path) -> Iterator[CdrsProcess]:
    with CdrsProcess(tmp_path, prefix=limited(f"-n {LIMIT}")).start() as started:
        yield started


class Client:
    """A connection that reads what is there and never waits for it."""

    def __init__(self, port: int, stack: ExitStack, *, sends: bytes = REQUEST) -> None:
        self._socket = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        self._socket.sendall(sends)
        self._socket.setblocking(False)
        self.got = b""
        self.end = ""

    def read(self) -> Client:
        while not self.end:
            try:
                received = self._socket.recv(65_536)
            except BlockingIOError:
                break
            except ConnectionResetError:
                self.end = "reset"
                break
            self.got += received
            self.end = "" if received else "closed"
        return self

    @property
    def is_live(self) -> bool:
        return b"cdrs.caught-up" in self.read().got and not self.end

    @property
    def is_sent_away(self) -> bool:
        return b"200 OK" in self.read().got and b'"reason":"overload"' in self.got and self.end == "closed"

    def close(self) -> None:
        self._socket.close()


@each_path
def test_the_newest_are_refused_in_band_and_the_rest_is_unharmed(cdrs: CdrsProcess) -> None:
    with ExitStack() as stack:
        clients = [Client(cdrs.port, stack) for _ in range(LIMIT + 50)]
        wait_until(lambda: all(c.is_live or c.is_sent_away for c in clients), 10, "an answer to each")
        # Those who come within some turns of the event loop are let in together, and not one after the other.
        assert sum(c.is_live for c in clients) == ROOM.streams
        assert all(c.is_live for c in clients[: ROOM.streams - 2 * ACCEPTS_A_TURN])
        assert not any(c.is_live for c in clients[ROOM.streams + 2 * ACCEPTS_A_TURN :])
        assert all(b"retry:" in c.got for c in clients)

        # Those that say nothing take what is left; beyond that a connection is closed without a word.
        idle = [Client(cdrs.port, stack, sends=b"") for _ in range(40)]
        wait_until(lambda: sum(c.read().end != "" for c in idle) >= 40 - (ROOM.most - ROOM.streams), 10, "their end")
        open_files = len(list((Path("/proc") / str(cdrs.pid) / "fd").iterdir()))
        assert open_files < LIMIT - 20, "none would be left for files and links"
        for each in idle:
            each.close()

        wait_until(lambda: served(cdrs.port), 5, "a request to be served beside the streams")
        assert cdrs.publish("near.limit", b'"all"').status == 201
        live = [c for c in clients if c.is_live]
        wait_until(lambda: all(b'"all"' in c.read().got for c in live), 10, "the event, at everybody who stayed")
        assert not any(c.end for c in live)

        for each in live[:10]:
            each.close()
        wait_until(lambda: newest_is_live(cdrs.port, stack), 10, "room again")
        assert "Traceback" not in cdrs.output(), cdrs.output()[-3000:]


def served(port: int) -> bool:
    try:
        return request(port, "GET", "/readyz", timeout=2).status == 200
    except OSError:
        return False


def newest_is_live(port: int, stack: ExitStack) -> bool:
    client = Client(port, stack)
    wait_until(lambda: client.is_live or client.is_sent_away, 5, "an answer")
    return client.is_live


def test_the_soft_limit_is_raised_to_the_hard_one(tmp_path: Path) -> None:
    with CdrsProcess(tmp_path, prefix=limited("-Sn 90")).start() as cdrs:
        limits = (Path("/proc") / str(cdrs.pid) / "limits").read_text()
    soft, hard = next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files"))
    assert soft == hard != "90"


@pytest.mark.parametrize("limit", [64, LIMIT, 1_024, 20_000, 1_000_000])
def test_room(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (limit, limit))
    found = room()
    assert 0 < found.streams < found.served + 1 <= found.most + 1 <= limit
    assert limit != LIMIT or found == ROOM
    assert limit != 20_000 or found.streams >= 18_000, "the default of sse.max_subscribers is meant for that limit"
