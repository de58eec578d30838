"""What is kept for a subscriber, for a record in memory, and for a stream: resident memory of one process."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from cdrs_process import request
from fan_out import Server, all_descriptors, loading, loading_many, ours
from report import Result

RUNS = 1
SUBSCRIBERS = 5_000
RECORDS = 120_000
"""More than the rings of all twelve partitions hold (8,192 each)."""
KEPT = 12 * 8_192
FEW = 240
BATCH = 2_000


def run(runs: int) -> Result:
    all_descriptors()
    rows: list[list[str]] = []
    found: dict[str, float] = {}
    for number in range(runs):
        for what, kib in measured():
            found[what] = min(kib, found.get(what, kib))
            rows.append([str(number + 1), what, f"{kib:.2f}"])
    return Result(
        ["run", "for each", "KiB"], rows,
        "; ".join(f"{what}: {kib:.2f} KiB" for what, kib in found.items()),
        "an idle process, before",
        "<= 4 KiB a subscriber",
        [f"{SUBSCRIBERS} subscribers; {RECORDS} records of 200 bytes of payload, of which the rings keep {KEPT}",
         "resident memory, so what the allocator keeps is in it; node and gateway share their records in one process"],
        figures={"cdrs": {what: kib for what, kib in found.items() if not what.startswith("the same")}},
    )  # fmt: skip


def measured() -> Iterator[tuple[str, float]]:
    """What, and KiB for each."""
    with ours() as server:
        with loading(server, 10):  # warm
            pass
        before = server.rss()
        with loading(server, SUBSCRIBERS) as loader:
            loader.idle(2)
            yield "subscriber of one stream", (server.rss() - before) / SUBSCRIBERS
    with ours() as server:
        with loading_many(server, 100, group=10, churn=0):
            pass
        before = server.rss()
        with loading_many(server, SUBSCRIBERS, group=10, churn=0) as loader:
            loader.idle(2)
            yield "subscriber with streams of its own", (server.rss() - before) / SUBSCRIBERS
    with ours() as server:
        yield "record in memory, few streams", grown(server, FEW, "few")
        few = server.rss()
        grown(server, FEW, "few")
        yield "the same again", (server.rss() - few) / KEPT
    with ours() as server:
        yield "record in memory, each of another stream", grown(server, RECORDS, "many")
        many = server.rss()
        grown(server, RECORDS, "more")
        yield "the same again, other streams", (server.rss() - many) / KEPT


def grown(server: Server, streams: int, prefix: str) -> float:
    """KiB a record that the process has grown by, after so many of them."""
    before = server.rss()
    for first in range(0, RECORDS, BATCH):
        lines = [
            json.dumps({
                "specversion": "1.0", "id": f"{prefix}{time.monotonic_ns()}", "source": "/b", "type": "t",
                "cdrsstream": f"{prefix}.{n % streams}", "data": {"pad": "x" * 190},
            })
            for n in range(first, first + BATCH)
        ]  # fmt: skip
        answer = request(
            server.port, "POST", "/v1/events?receipts=errors", "\n".join(lines).encode(),
            {"content-type": "application/x-ndjson"}, timeout=60,
        )  # fmt: skip
        assert b'"failed":0' in answer.body, answer.body[:300]
    time.sleep(1)
    return (server.rss() - before) / KEPT
