"""Real browsers that join a crowd in gzip, stay for some events and leave, again and again: what each of their
`EventSource`s gave the page is compared, byte for byte, with what a subscriber without any coding has got."""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from browsers import BROWSERS, Browser, PageServer, find
from cdrs_process import CdrsProcess, request
from sample import load_sample
from sse_socket import Subscriber
from write_paths import portable_slow

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

PAGE = Path(__file__).with_name("gzip_crowd.html").read_bytes()
STREAM = "gz.edits"
PATH = f"/v1/streams/{STREAM}/events"
CROWD = 30
START = 60.0
"""Seconds a browser may take to start on a busy machine."""


@contextmanager
def crowd(port: int) -> Iterator[None]:
    """Readers who stay, so that a window lasts."""
    stop = threading.Event()
    sockets = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(CROWD)]
    selector = selectors.DefaultSelector()
    for each in sockets:
        each.sendall(f"GET {PATH} HTTP/1.1\r\nHost: test\r\nAccept-Encoding: gzip\r\n\r\n".encode())
        selector.register(each, selectors.EVENT_READ)

    def drain() -> None:
        while not stop.is_set():
            for key, _ in selector.select(0.1):
                key.fileobj.recv(1 << 18)  # type: ignore[union-attr]

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
        for each in sockets:
            each.close()


def metric(port: int, name: str) -> float:
    text = request(port, "GET", "/metrics").body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


@portable_slow
@pytest.mark.parametrize(
    ("name", "joins"),
    [("chromium", 40), *(pytest.param(name, 3000, marks=pytest.mark.slow) for name in sorted(BROWSERS))],
)
def test_every_join_is_given_the_very_bytes(name: str, joins: int, tmp_path: Path) -> None:
    if find(name) is None:
        if os.environ.get("CDRS_REQUIRE_BROWSERS"):
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    lines = load_sample().lines
    with PageServer(PAGE) as pages:
        env = {"CDRS_GATEWAY__CORS_ORIGINS": json.dumps([pages.origin]), "CDRS_SSE__COMPRESSION_READERS": "2"}
        with CdrsProcess(tmp_path / "cdrs", env=env).start() as cdrs:
            assert cdrs.publish(STREAM, b"{}").status == 201
            source = f"http://127.0.0.1:{cdrs.port}{PATH}"
            page = f"{pages.origin}/?joins={joins}&report={quote(pages.origin, safe='')}&url={quote(source, safe='')}"
            plain = Subscriber(cdrs.port, STREAM, params={"compression": "off"}).start()
            with plain, crowd(cdrs.port), Browser(name, tmp_path, page):
                pages.wait(lambda: bool(pages.reports), START, "the page to load")
                pages.go.set()
                sent = most = 0
                told = 0
                while told < joins:
                    batch = [lines[n % len(lines)] for n in range(sent, sent + 5)]
                    answer = request(
                        cdrs.port, "POST", f"{PATH}?receipts=errors", b"\n".join(batch),
                        {"content-type": "application/x-ndjson"},
                    )  # fmt: skip
                    assert answer.status == 200
                    sent += len(batch)
                    told = len(pages.of("join"))
                    if sent % 500 == 0:
                        most = max(most, int(metric(cdrs.port, "cdrs_sse_gzip_connections ")))
                    assert sent < 1000 * joins, pages.reports[-5:]
                plain.wait_count(sent, 30)
                assert most > CROWD, "the browser was not answered in gzip"
                passes = metric(cdrs.port, "cdrs_sse_gzip_events_total ")
            assert not pages.of("error")
            assert passes <= sent
            check(pages, plain)


def check(pages: PageServer, plain: Subscriber) -> None:
    at = {block.id.decode(): number for number, block in enumerate(plain.blocks)}
    for report in pages.of("join"):
        told = report["data"]
        first = at[told["first"]]
        events = plain.blocks[first : first + told["count"]]
        text = b"\n".join(part for block in events for part in (block.id, block.data))
        assert hashlib.sha256(text).hexdigest() == told["digest"], (first, told)
