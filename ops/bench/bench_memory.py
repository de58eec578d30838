"""What is kept for a subscriber, for a record in memory, and for a stream: resident memory of one process.

Beside it what one would have otherwise: B0's subscribers, and a list of the same events in a plain Python process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

from cdrs_process import request
from fan_out import Opener, Server, all_descriptors, loading, loading_many, naive, ours
from report import Result

RUNS = 1
SUBSCRIBERS = 5_000
RECORDS = 120_000
"""More than the rings of all twelve partitions hold (8,192 each)."""
KEPT = 12 * 8_192
FEW = 240
BATCH = 2_000
NAIVE_SUBSCRIBERS = 1_000
"""Of B0, which takes long to accept more; each costs the same."""
ONE, OWN = "subscriber of one stream", "subscriber with streams of its own"
RECORDS_OF = ("record in memory, few streams", "record in memory, each of another stream")
LISTED = f"""
import json, os, sys
sys.path[:0] = {sys.path[:2]!r}
from machine import rss_kib
before = rss_kib(os.getpid())
kept = [json.loads(line) for line in sys.stdin]
print((rss_kib(os.getpid()) - before) / len(kept))
"""
"""A process that keeps the events it reads as parsed objects."""


def run(runs: int) -> Result:
    all_descriptors()
    rows: list[list[str]] = []
    found: dict[str, dict[str, float]] = {"cdrs": {}, "B0": {}, "plain": {}}
    for number in range(runs):
        for name, what, kib in (*(("cdrs", *each) for each in measured()), *others()):
            found[name][what] = min(kib, found[name].get(what, kib))
            rows.append([str(number + 1), name, what, f"{kib:.2f}"])
    return Result(
        ["run", "server", "for each", "KiB"], rows,
        "; ".join(f"{what}: {kib:.2f} KiB" for what, kib in found["cdrs"].items()),
        f"an idle process, before; B0: {found['B0'][ONE]:.2f} and {found['B0'][OWN]:.2f} KiB; a list of parsed events: "
        f"{found['plain'][RECORDS_OF[0]]:.2f} KiB",
        "<= 4 KiB a subscriber",
        [f"{SUBSCRIBERS} subscribers; {RECORDS} records of 200 bytes of payload, of which the rings keep {KEPT}",
         "resident memory, so what the allocator keeps is in it; node and gateway share their records in one process"],
        figures={
            name: {what: kib for what, kib in of.items() if not what.startswith("the same")}
            for name, of in found.items()
        },
    )  # fmt: skip


def measured() -> Iterator[tuple[str, float]]:
    """What, and KiB for each."""
    yield from subscribed(ours, SUBSCRIBERS)
    with ours() as server:
        yield RECORDS_OF[0], grown(server, FEW, "few")
        few = server.rss()
        grown(server, FEW, "few")
        yield "the same again", (server.rss() - few) / KEPT
    with ours() as server:
        yield RECORDS_OF[1], grown(server, RECORDS, "many")
        many = server.rss()
        grown(server, RECORDS, "more")
        yield "the same again, other streams", (server.rss() - many) / KEPT


def others() -> Iterator[tuple[str, str, float]]:
    """Of whom, what, and KiB for each."""
    for what, kib in subscribed(naive, NAIVE_SUBSCRIBERS):
        yield "B0", what, kib
    lines = "".join(f"{line}\n" for first in range(0, KEPT, BATCH) for line in events(first, FEW, "few"))
    done = subprocess.run([sys.executable, "-c", LISTED], input=lines, capture_output=True, text=True, check=True)
    for what in RECORDS_OF:
        yield "plain", what, float(done.stdout)


def subscribed(opened: Opener, count: int) -> Iterator[tuple[str, float]]:
    with opened() as server:
        with loading(server, 10):  # warm
            pass
        before = server.rss()
        with loading(server, count) as loader:
            loader.idle(2)
            yield ONE, (server.rss() - before) / count
    with opened() as server:
        with loading_many(server, 100, group=10, churn=0):
            pass
        before = server.rss()
        with loading_many(server, count, group=10, churn=0) as loader:
            loader.idle(2)
            yield OWN, (server.rss() - before) / count


def events(first: int, streams: int, prefix: str) -> list[str]:
    """Lines of a batch."""
    return [
        json.dumps({
            "specversion": "1.0", "id": f"{prefix}{time.monotonic_ns()}", "source": "/b", "type": "t",
            "cdrsstream": f"{prefix}.{n % streams}", "data": {"pad": "x" * 190},
        })
        for n in range(first, first + BATCH)
    ]  # fmt: skip


def grown(server: Server, streams: int, prefix: str) -> float:
    """KiB a record that the process has grown by, after so many of them."""
    before = server.rss()
    for first in range(0, RECORDS, BATCH):
        lines = events(first, streams, prefix)
        answer = request(
            server.port, "POST", "/v1/events?receipts=errors", "\n".join(lines).encode(),
            {"content-type": "application/x-ndjson"}, timeout=60,
        )  # fmt: skip
        assert b'"failed":0' in answer.body, answer.body[:300]
    time.sleep(1)
    return (server.rss() - before) / KEPT
