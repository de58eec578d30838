"""Event streams in gzip over sockets, on both write paths: heads, whole members, and clients of other people's."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import socket
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import aclosing, closing, contextmanager
from pathlib import Path

import aiohttp
import pytest
from cdrs_process import Answer, request, wait_until
from sse_socket import Block, BodyReader, EventStreamParser
from threaded_server import ThreadedServer, metric, publish, threaded_server

from services.cli.sse_client import Reconnect, Subscription

READERS = 3


@pytest.fixture(scope="module")
def server(write_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedServer]:
    folder = tmp_path_factory.mktemp("gzip")
    manners = {"heartbeat": 0.5, "compression_readers": READERS, "write_path": write_path, "backlog_bytes": 65_536}
    with threaded_server(folder, loop="uvloop", **manners) as running:
        yield running


class Follower:
    """A connection that subscribed, and decodes at once what it gets."""

    def __init__(self, port: int, stream: str, *, accept: str | None = "gzip", query: str = "") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.body = BodyReader()
        self.parser = EventStreamParser()
        self.blocks: list[Block] = []
        self.numbers: list[int] = []
        self.coded = 0
        self.text = 0
        self.decoder = zlib.decompressobj(31)
        lines = [f"GET /v1/streams/{stream}/events{query} HTTP/1.1", "Host: test"]
        lines += [] if accept is None else [f"Accept-Encoding: {accept}"]
        self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")

    @property
    def is_gzip(self) -> bool:
        return self.body.headers.get("content-encoding") == "gzip"

    def close(self) -> None:
        self.socket.close()

    def read(self) -> bool:
        data = self.socket.recv(65536)
        text = self.body.feed(data)
        self.coded += len(text)
        text = self.decoder.decompress(text) if self.is_gzip else text
        self.text += len(text)
        blocks = self.parser.feed(text)
        self.blocks += blocks
        self.numbers += [json.loads(block.data)["data"]["n"] for block in blocks if not block.is_control]
        return bool(data) and not self.body.complete

    def until_number(self, number: int) -> Follower:
        while not self.numbers or self.numbers[-1] < number:
            assert self.read()
        return self

    def opened(self) -> Follower:
        while not any(block.event == b"cdrs.caught-up" for block in self.blocks):
            assert self.read()
        return self


@contextmanager
def crowd(server: ThreadedServer, stream: str) -> Iterator[list[Follower]]:
    """As many readers as make the next one's answer gzip."""
    followers = [Follower(server.port, stream, accept=None).opened() for _ in range(READERS - 1)]
    try:
        yield followers
    finally:
        for follower in followers:
            follower.close()
        wait_until(lambda: metric(server, "cdrs_sse_connections ") == 0, 10, "all streams to be counted out")


@pytest.mark.parametrize(("accept", "is_gzip"), [("gzip, deflate, br, zstd", True), ("br", False), (None, False)])
def test_who_accepts_gzip_gets_it(server: ThreadedServer, accept: str | None, is_gzip: bool) -> None:
    with crowd(server, "gz.heads"), closing(Follower(server.port, "gz.heads", accept=accept)) as follower:
        headers = follower.opened().body.headers
        assert follower.is_gzip is is_gzip
        assert headers["vary"] == "Accept-Encoding"
        assert headers["cache-control"] == "no-store, no-transform"
        assert headers["content-type"].startswith("text/event-stream")


def test_small_views_and_those_who_opt_out_get_the_text_as_it_is(server: ThreadedServer) -> None:
    with closing(Follower(server.port, "gz.small")) as alone:
        assert not alone.opened().is_gzip
    with closing(Follower(server.port, "gz.small", accept="gzip, identity;q=0")) as refuses:
        assert refuses.opened().is_gzip
    with crowd(server, "gz.small"):
        with closing(Follower(server.port, "gz.small", query="?compression=off")) as plain:
            assert not plain.opened().is_gzip
        with closing(Follower(server.port, "gz.small", query="?compression=auto")) as coded:
            assert coded.opened().is_gzip
    wrong = request(server.port, "GET", "/v1/streams/gz.small/events?compression=on")
    assert (wrong.status, wrong.json()["type"]) == (400, "/problems/invalid-parameter")


def test_a_server_that_is_told_not_to_never_does(tmp_path: Path) -> None:
    with (
        threaded_server(tmp_path, loop="uvloop", compression="off", compression_readers=1) as server,
        closing(Follower(server.port, "gz.off", accept="gzip, identity;q=0")) as follower,
    ):
        assert not follower.opened().is_gzip


def test_history_live_and_heartbeats_in_one_member(server: ThreadedServer) -> None:
    publish(server, "gz.all", 300)
    with crowd(server, "gz.all"):
        readers = [Follower(server.port, "gz.all", query="?from=earliest") for _ in range(READERS + 2)]
        for reader in readers:
            assert reader.until_number(299).is_gzip
        for start in range(300, 600, 20):
            publish(server, "gz.all", 20, first=start)
            for reader in readers:
                reader.until_number(start + 19)
        assert metric(server, "cdrs_sse_gzip_windows ") == 1
        assert metric(server, "cdrs_sse_gzip_events_total ") < 600, "not once for each reader"
        late = Follower(server.port, "gz.all")
        late.opened()
        publish(server, "gz.all", 20, first=600)
        late.until_number(619)
        assert late.numbers == list(range(600, 620))
        for reader in readers:
            reader.until_number(619)
            seen = len(reader.blocks)
            while not any(block.event == b"cdrs.cursor" for block in reader.blocks[seen:]):
                assert reader.read()
        publish(server, "gz.all", 100, first=620)
        for reader in readers:
            assert reader.until_number(719).numbers == list(range(720))
            reader.close()
        late.close()


def test_one_who_does_not_read_for_a_while_gets_it_all_from_history(server: ThreadedServer) -> None:
    with crowd(server, "gz.slow") as others:
        slow, quick = (Follower(server.port, "gz.slow").opened() for _ in range(2))
        chance = random.Random(1)
        for first in range(0, 3000, 100):
            lines = [b'{"n":%d,"pad":"%s"}' % (first + n, chance.randbytes(500).hex().encode()) for n in range(100)]
            request(
                server.port, "POST", "/v1/streams/gz.slow/events?receipts=errors", b"\n".join(lines),
                {"content-type": "application/x-ndjson"},
            )  # fmt: skip
            for each in (quick, *others):
                each.until_number(first + 99)
        resumed = metric(server, "cdrs_sse_resumes_total")
        assert slow.until_number(2999).numbers == list(range(3000))
        assert metric(server, "cdrs_sse_resumes_total") > resumed, "it was never behind"
        publish(server, "gz.slow", 1, first=3000)
        for each in (slow, quick):
            assert each.until_number(3000).numbers == list(range(3001))
            each.close()


def test_a_crowd_costs_a_third_of_the_bytes(server: ThreadedServer) -> None:
    with crowd(server, "gz.bytes"):
        readers = [Follower(server.port, "gz.bytes").opened() for _ in range(READERS)]
        for start in range(0, 20, 10):
            publish(server, "gz.bytes", 10, first=start)
            readers[0].until_number(start + 9)
        before = readers[0].coded, readers[0].text
        for start in range(20, 170):
            publish(server, "gz.bytes", 1, first=start)
        for reader in readers:
            assert reader.until_number(169).numbers == list(range(170))
        coded, text = (after - was for after, was in zip((readers[0].coded, readers[0].text), before, strict=True))
        assert coded * 3 <= text
        for reader in readers:
            reader.close()


def test_a_rotated_stream_ends_with_a_whole_member(write_path: str, tmp_path: Path) -> None:
    manners = {"heartbeat": 0.2, "max_age": 1.0, "compression_readers": 1, "write_path": write_path}
    with (
        threaded_server(tmp_path, loop="uvloop", **manners) as brief,
        closing(Follower(brief.port, "gz.brief")) as follower,
    ):
        follower.opened()
        publish(brief, "gz.brief", 30)
        publish(brief, "gz.brief", 30, first=30)
        while follower.read():
            pass
        assert follower.numbers == list(range(60))
        assert json.loads(follower.blocks[-1].data)["reason"] == "rotate"
        assert follower.decoder.eof, "no end, or a wrong checksum"
        assert follower.decoder.unused_data == b""


def test_head_tells_the_coding_and_opens_nothing(server: ThreadedServer) -> None:
    answer: Answer = request(
        server.port, "HEAD", "/v1/streams/gz.head/events", headers={"accept-encoding": "gzip, identity;q=0"}
    )
    assert (answer.status, answer.body, answer.headers["content-encoding"]) == (200, b"", "gzip")
    assert metric(server, "cdrs_sse_connections ") == 0


def test_curl_reads_it_to_the_end(write_path: str, tmp_path: Path) -> None:
    """It checks the checksum."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here")
    manners = {"heartbeat": 0.2, "max_age": 1.5, "compression_readers": 1, "write_path": write_path}
    with threaded_server(tmp_path, loop="uvloop", **manners) as server:
        url = f"http://127.0.0.1:{server.port}/v1/streams/gz.curl/events"
        with subprocess.Popen([curl, "-sS", "-i", "--compressed", url], stdout=subprocess.PIPE) as process:
            wait_until(lambda: metric(server, "cdrs_sse_gzip_connections ") == 1, 10, "curl to subscribe")
            for start in range(0, 60, 20):
                publish(server, "gz.curl", 20, first=start)
            out, _ = process.communicate(timeout=20)
            assert process.returncode == 0
        head, _, text = out.partition(b"\r\n\r\n")
        assert b"content-encoding: gzip" in head.lower()
        blocks = EventStreamParser().feed(text)
        assert [json.loads(b.data)["data"]["n"] for b in blocks if not b.is_control] == list(range(60))
        assert blocks[-1].event == b"cdrs.bye"


async def test_our_own_client_reads_it(server: ThreadedServer) -> None:
    publish(server, "gz.own", 500)
    with crowd(server, "gz.own"):
        url = f"http://127.0.0.1:{server.port}/v1/streams/gz.own/events"
        numbers: list[int] = []
        async with (
            asyncio.timeout(20),
            aiohttp.ClientSession() as session,
            aclosing(Subscription(session, url, [("from", "earliest")]).events()) as events,
        ):
            async for event in events:
                assert not isinstance(event, Reconnect), event
                if event.event == "cdrs.caught-up":
                    assert metric(server, "cdrs_sse_gzip_connections ") == 1
                    publish(server, "gz.own", 50, first=500)
                elif event.event == "message":
                    numbers.append(json.loads(event.data)["data"]["n"])
                if len(numbers) == 550:
                    break
        assert numbers == list(range(550))
