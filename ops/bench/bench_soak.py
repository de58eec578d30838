"""Subscribers, events and ten connects a second for a long time: whether memory stays where it is."""

from __future__ import annotations

import os
import statistics
import time

from cdrs_process import request
from fan_out import Server, loading_many, ours, sound
from report import Result

RUNS = 1
MINUTES = 30.0
SUBSCRIBERS = 1_000
GROUP = 10
CHURN = 10
STEP = 10
"""Seconds, and rounds, between two looks."""
WARM = 150.0
"""Seconds until the rings are full; what memory grows by until then is not looked at."""
ALLOWED_KIB = 4 * 1024
"""How much more the last third may hold than the first: less than a byte for every delivery."""


def run(_runs: int) -> Result:
    minutes = float(os.environ.get("CDRS_BENCH_MINUTES", MINUTES))
    rows: list[list[str]] = []
    seen: list[int] = []
    whole, deliveries, guests = True, 0, 0
    with ours() as server, loading_many(server, SUBSCRIBERS, group=GROUP, churn=CHURN) as loader:
        begun = time.monotonic()
        while (at := time.monotonic() - begun) < minutes * 60 + WARM:
            said = loader.rounds(STEP, batch=500)
            whole = whole and sound(said)
            deliveries += said["deliveries"]
            guests = said["guests"]
            kib = server.rss()
            if at >= WARM:
                seen.append(kib)
            if not rows or at - float(rows[-1][0]) >= 60:
                rows.append([
                    f"{at:.0f}", f"{kib / 1024:.1f}", str(collections(server)),
                    *(f"{said[key]:.0f}" for key in ("p50_ms", "p99_ms", "max_ms")),
                    f"{said['cpu'] / said['took']:.2f}", f"{said['loader_cpu'] / said['took']:.2f}", str(guests),
                ])  # fmt: skip
    third = max(1, len(seen) // 3)
    first, last = statistics.median(seen[:third]), statistics.median(seen[-third:])
    flat = last - first <= ALLOWED_KIB
    return Result(
        ["second", "MiB", "full collections", "p50 ms", "p99 ms", "max ms", "core", "loader", "came and went"], rows,
        f"{'flat' if flat else 'GROWS'}: {first / 1024:.1f} MiB in the first third, {last / 1024:.1f} in the last, "
        f"{max(seen) / 1024:.1f} at most, over {minutes:g} minutes, {deliveries:,} deliveries and {guests:,} clients "
        f"that came and went{'' if whole else '; NOT all delivered'}",
        "the same process, itself",
        f"the last third holds at most {ALLOWED_KIB // 1024} MiB more than the first",
        [f"{SUBSCRIBERS:,} subscribers of a stream of their own and one of a group each, an event a second in each",
         f"{CHURN} connects a second, each for 3 s; counted after {WARM:.0f} s, when the rings are full",
         "MiB has no baseline: `compare` looks at the last third / the first only"],
        figures={"cdrs": {"last third / first": last / first, "MiB": last / 1024}},
    )  # fmt: skip


def collections(server: Server) -> int:
    """Full garbage collections of the process so far."""
    text = request(server.port, "GET", "/metrics").body.decode()
    line = next(x for x in text.splitlines() if x.startswith('python_gc_collections_total{generation="2"'))
    return int(float(line.rpartition(" ")[2]))
