"""S4: 10,000 subscribers, each of a stream of its own and of one of 1,000 groups of ten, while others come and go."""

from __future__ import annotations

import statistics
from typing import Any

import instructions
from fan_out import Opener, floor, loading_many, naive, ours, sound
from report import Result

RUNS = 1
SUBSCRIBERS = 10_000
GROUP = 10
CHURN = 33
WARM, ROUNDS = 3, 15
BATCH = 500
LIMIT_MS, LIMIT_CORE = 50, 0.6
FULL_CORE, FULL_MS = 0.95, 1_000.0
"""A server that uses so much of its core, or lets events wait so long, is saturated: its figures are of a queue."""

Measured = list[dict[str, Any]]


def run(runs: int) -> Result:
    servers: dict[str, Opener] = {"F": floor, "cdrs": ours, "B0": naive}
    rows: list[list[str]] = []
    found: dict[str, Measured] = {name: [] for name in servers}
    for number in range(runs):
        for name, opened in servers.items():
            with opened() as server, loading_many(server, SUBSCRIBERS, group=GROUP, churn=CHURN) as loader:
                loader.rounds(WARM, batch=BATCH)
                idle = loader.idle(3)
                said = loader.rounds(ROUNDS, batch=BATCH)
            found[name].append(said)
            rows.append(row(number, name, said, idle))
    text = {name: words(said) for name, said in found.items()}
    full = [name for name, said in found.items() if is_saturated(said)]
    return Result(
        ["run", "server", "events/s", "deliveries/s", "p50 ms", "p99 ms", "max ms", "core", "of it idle",
         "CPU us/delivery", "MiB", "came and went", "loader", *instructions.column(), "all"],
        rows,
        text["cdrs"],
        f"F {text['F']}; B0 {text['B0']}",
        f"p99 <= {LIMIT_MS} ms at <= {LIMIT_CORE:.0%} of the core",
        [f"one event a second to each of {SUBSCRIBERS:,} private streams and {SUBSCRIBERS // GROUP:,} groups",
         f"{SUBSCRIBERS + SUBSCRIBERS // GROUP:,} events/s in, {2 * SUBSCRIBERS:,} deliveries/s out",
         "ids are UUIDs of version 7",
         f"as NDJSON over one connection; {CHURN} connects a second, each for 3 s",
         "every event is stored with fsync first (B0 stores nothing; F looks for the stream's name and sends)",
         "core: CPU of the server per second, publishing and storing included; all: every delivery, once, in order",
         f"saturated, so not to be compared: {', '.join(full) or 'none'}", instructions.note()],
        figures={name: figures(said) for name, said in found.items()},
        saturated=full,
    )  # fmt: skip


def core(said: dict[str, Any]) -> float:
    return float(said["cpu"] / said["took"])


def is_saturated(measured: Measured) -> bool:
    return any(not sound(said) or core(said) >= FULL_CORE or said["p99_ms"] >= FULL_MS for said in measured)


def figures(measured: Measured) -> dict[str, float]:
    """CPU and instructions are those of a delivery, publishing and storing included."""
    cost = statistics.median(said["cpu"] / max(1, said["deliveries"]) * 1e6 for said in measured)
    found = {key: middle(measured, key) for key in ("p50_ms", "p99_ms")} | {"us/delivery": cost}
    counted = instructions.middle(measured)
    return found if counted is None else found | {"instructions/delivery": counted}


def middle(measured: Measured, key: str) -> float:
    return float(statistics.median(said[key] for said in measured))


def words(measured: Measured) -> str:
    share = statistics.median(map(core, measured))
    whole = "" if all(map(sound, measured)) else ", NOT all delivered in time"
    times = f"p50 {middle(measured, 'p50_ms'):.1f}, p99 {middle(measured, 'p99_ms'):.1f} ms"
    return f"{times} at {share:.0%} of the core{whole}"


def row(number: int, name: str, said: dict[str, Any], idle: float) -> list[str]:
    took = said["took"]
    return [
        str(number + 1), name, f"{said['published'] / took:,.0f}", f"{said['deliveries'] / took:,.0f}",
        *(f"{said[key]:.1f}" for key in ("p50_ms", "p99_ms", "max_ms")), f"{core(said):.2f}", f"{idle:.2f}",
        f"{said['cpu'] / max(1, said['deliveries']) * 1e6:.1f}", f"{said['rss_kib'] / 1024:.0f}", str(said["guests"]),
        f"{said['loader_cpu'] / took:.2f}", *instructions.cell(said), "yes" if sound(said) else "NO",
    ]  # fmt: skip
