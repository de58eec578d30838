"""S3: one stream, 1,000 subscribers, more and more events: the most deliveries a second with a p99 of 50 ms."""

from __future__ import annotations

from typing import Any

import instructions
from fan_out import Opener, Server, all_descriptors, floor, loading, naive, ours, peers, sound
from report import Result

RUNS = 1
SUBSCRIBERS = 1_000
SECONDS = 5
GROWTH = 1.5
LIMIT_MS = 50
BATCH = 500
TRIES = 2
"""A step that fails once is repeated: a pause of the machine is no limit of the server."""


def run(runs: int) -> Result:
    all_descriptors()
    ramps: list[tuple[str, str, Opener, float, int, int]] = [
        ("F", "NDJSON", floor, 500, BATCH, 1),
        ("cdrs", "NDJSON", ours, 300, BATCH, 1),
        ("cdrs", "one a POST", ours, 50, 1, 8),
    ]
    ramps.append(("B0", "one a POST", naive, 5, 1, 8))
    ramps += [(name, "one a POST", opened, 50, 1, 8) for name, opened in peers().items()]
    rows: list[list[str]] = []
    best: dict[tuple[str, str], float] = {}
    for number in range(runs):
        for name, how, opened, first, batch, connections in ramps:
            with opened() as server, loading(server, SUBSCRIBERS) as loader:
                loader.publish(rate=first / 2, seconds=1, batch=batch, connections=connections)  # warm
                rate, failures = first, 0
                while failures < TRIES:
                    said = loader.publish(rate=rate, seconds=SECONDS, batch=batch, connections=connections)
                    good = sound(said) and said["p99_ms"] <= LIMIT_MS
                    rows.append(row(number, server, how, said, good=good))
                    if good:
                        reached = said["deliveries"] / said["drained_seconds"]
                        best[name, how] = max(best.get((name, how), 0), reached)
                        rate, failures = rate * GROWTH, 0
                    else:
                        failures += 1
    text = {key: f"{value / 1e6:.2f} M deliveries/s" for key, value in best.items()}
    return Result(
        ["run", "server", "published", "events/s", "deliveries/s", "p50 ms", "p99 ms", "max ms", "CPU us/delivery",
         "server", "MiB", "loader", *instructions.column(), "good"],
        rows,
        f"{text.get(('cdrs', 'NDJSON'), 'none')} by NDJSON, {text.get(('cdrs', 'one a POST'), 'none')} by single POSTs",
        f"F {text.get(('F', 'NDJSON'), 'none')}; by single POSTs B0 {text.get(('B0', 'one a POST'), 'none')}"
        + "".join(f", {name} {text[name, 'one a POST']}" for name in peers() if (name, "one a POST") in text),
        ">= 1.2 M/s with p99 <= 50 ms by NDJSON; single POSTs >= nchan",
        [f"{SUBSCRIBERS} subscribers, {SECONDS} s a step, steps x {GROWTH:g}, open loop: late publishing is latency",
         "server, loader: shares of their cores; every event is stored with fsync first", instructions.note()],
        figures=figures(best),
    )  # fmt: skip


def figures(best: dict[tuple[str, str], float]) -> dict[str, dict[str, float]]:
    """Microseconds of wall time for a delivery at the highest rate that was good."""
    found: dict[str, dict[str, float]] = {}
    for (name, how), rate in best.items():
        found.setdefault(name, {})[f"us/delivery, {how}"] = 1e6 / rate
    return found


def row(number: int, server: Server, how: str, said: dict[str, Any], *, good: bool) -> list[str]:
    took = said["drained_seconds"]
    return [
        str(number + 1), server.name, how, f"{said['published'] / said['seconds']:,.0f}",
        f"{said['deliveries'] / took:,.0f}", *(f"{said[key]:.1f}" for key in ("p50_ms", "p99_ms", "max_ms")),
        f"{said['cpu'] / max(1, said['deliveries']) * 1e6:.2f}", f"{said['cpu'] / said['took']:.2f}",
        f"{said['rss_kib'] / 1024:.0f}", f"{said['loader_cpu'] / said['took']:.2f}", *instructions.cell(said),
        "yes" if good else "no",
    ]  # fmt: skip
