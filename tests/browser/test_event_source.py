"""A plain `EventSource` in real browsers: live edits, a gateway killed and started again, a cut before the first event.

Browsers come from the system's packages (`chromium`, `firefox-esr`); one that is missing is skipped, unless
CDRS_REQUIRE_BROWSERS is set.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pytest
from browsers import BROWSERS, Browser, PageServer, find
from cdrs_process import CdrsProcess, request, wait_until
from exactly_once import check_exactly_once
from logging_proxy import LoggingProxy
from sample import load_sample, stream_of
from sse_socket import Block
from write_paths import each_path, portable_slow

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

PAGE = Path(__file__).with_name("event_source.html").read_bytes()
START = 60.0
"""Seconds a browser may take to start on a busy machine."""


@pytest.fixture(params=sorted(BROWSERS))
def browser(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if find(name) is None:
        if os.environ.get("CDRS_REQUIRE_BROWSERS"):
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return name


def address(origin: str, pages: PageServer, source: str) -> str:
    """The page at an origin, following ``source`` and reporting to ``pages``."""
    return f"{origin}/?report={quote(pages.origin, safe='')}&url={quote(source, safe='')}"


def wait_open(pages: PageServer) -> None:
    """Let the page begin, and wait until it is past its first cursor block."""
    pages.wait(lambda: bool(pages.reports), START, "the page to load")
    pages.go.set()
    pages.wait(lambda: any(r["kind"] == "cdrs.cursor" for r in pages.reports), START, "the first cursor block")


def publish(port: int, lines: Sequence[bytes], start: int) -> None:
    """POST lines as one batch with ids of their own, again and again until all are stored."""
    events = [
        b'{"specversion":"1.0","id":"%d","source":"test","type":"edit","cdrsstream":"%s","data":%s}'
        % (start + i, stream_of(line).encode(), line)
        for i, line in enumerate(lines)
    ]
    body = b"[" + b",".join(events) + b"]"
    deadline = time.monotonic() + 30
    refused: Exception | None = None
    while True:
        try:
            answer = request(port, "POST", "/v1/events", body, {"content-type": "application/cloudevents-batch+json"})
            if answer.status in (200, 201) or (answer.status == 207 and b'"problem"' not in answer.body):
                return
            assert answer.status in (207, 503, 504), answer
        except (OSError, http.client.HTTPException) as error:
            refused = error
        assert time.monotonic() < deadline, f"never stored: {refused!r}"
        time.sleep(0.05)


def messages(pages: PageServer) -> list[Block]:
    return [Block(r["id"].encode(), b"", r["data"].encode(), 0.0) for r in pages.of("message")]


def wanted(lines: Sequence[bytes]) -> dict[str, list[bytes]]:
    split: dict[str, list[bytes]] = {}
    for line in lines:
        split.setdefault(stream_of(line), []).append(line)
    return split


def cors(pages: PageServer) -> dict[str, str]:
    return {"CDRS_GATEWAY__CORS_ORIGINS": json.dumps([pages.origin])}


@each_path
@pytest.mark.parametrize(
    ("browser", "write_path"),
    [
        ("chromium", "fast"),
        ("chromium", "portable"),
        ("firefox", "fast"),
        pytest.param("firefox", "portable", marks=pytest.mark.slow),
    ],
    indirect=True,
)
def test_live_edits_over_a_gateway_restart(browser: str, tmp_path: Path) -> None:
    """A page of another origin. Firefox closes its `EventSource` for good if a reconnect is refused, so this also shows
    that the port stays open while there is no gateway."""
    lines = load_sample().lines[:900]
    with (
        PageServer(PAGE) as pages,
        CdrsProcess(tmp_path / "cdrs", ["--nodes", "2"], env=cors(pages)).start() as cdrs,
    ):
        source = f"{cdrs.url}/v1/events?stream=wiki.%3E"
        with Browser(browser, tmp_path, address(pages.origin, pages, source)):
            wait_open(pages)
            for at in range(0, 900, 25):
                publish(cdrs.port, lines[at : at + 25], at)
                if at in (300, 600):
                    pages.wait(lambda n=at: len(messages(pages)) >= n, 60, f"{at} edits")
                    gateway = cdrs.pids("gateway")[0]
                    os.kill(gateway, signal.SIGKILL)
                    wait_until(lambda g=gateway: [p for p in cdrs.pids("gateway") if p != g], 20, "another gateway")
            pages.wait(lambda: len(messages(pages)) >= 900, 60, "900 edits")
            publish(cdrs.port, [b'{"channel":"#en.wikipedia","last":true}'], 900)
            pages.wait(lambda: '"last":true' in (pages.reports[-1]["data"] or ""), 20, "the last edit")
        check_exactly_once(messages(pages)[:-1], wanted(lines), browser)
        assert len(pages.of("open")) == 3, [r for r in pages.reports if r["kind"] != "message"]
        assert all(r["state"] == 0 for r in pages.of("error")), "closed for good"
        assert not pages.of("cdrs.gap")


@portable_slow
def test_cut_before_the_first_event(browser: str, tmp_path: Path) -> None:
    """A page of another origin, so that it also shows that neither the request nor its resuming needs a preflight."""
    lines = load_sample().lines[:40]
    with (
        PageServer(PAGE) as pages,
        CdrsProcess(tmp_path / "cdrs", env=cors(pages)).start() as cdrs,
        LoggingProxy(cdrs.port) as proxy,
    ):
        publish(cdrs.port, lines[:20], 0)
        source = f"http://127.0.0.1:{proxy.port}/v1/events?stream=wiki.%3E"
        with Browser(browser, tmp_path, address(pages.origin, pages, source)):
            wait_open(pages)
            first_cursor = pages.of("cdrs.cursor")[0]["id"]
            assert not pages.of("message"), "from=latest gave history"
            proxy.hold()
            proxy.cut()
            pages.wait(lambda: any(r["kind"] == "error" for r in pages.reports), 20, "the page to see the cut")
            publish(cdrs.port, lines[20:], 20)
            proxy.release()
            pages.wait(lambda: len(messages(pages)) >= 20, 30, "the edits of meanwhile")
        check_exactly_once(messages(pages), wanted(lines[20:]), browser)
        first, second = proxy.gets("/v1/events")[:2]
        assert "last-event-id" not in first.headers
        assert second.headers["last-event-id"] == first_cursor
        assert len(first_cursor) <= 128
        assert not [head for head in proxy.heads if head.method == "OPTIONS"], "a preflight was needed"
