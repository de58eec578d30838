"""S4: 10,000 subscribers, each of a stream of its own and of one of 1,000 groups of ten, while others come and go."""

from __future__ import annotations

import statistics
from typing import Any

from fan_out import Opener, loading_many, naive, ours, sound
from report import Result

RUNS = 1
SUBSCRIBERS = 10_000
GROUP = 10
CHURN = 33
WARM, ROUNDS = 3, 15
BATCH = 500
LIMIT_MS, LIMIT_CORE = 50, 0.6


def run(runs: int) -> Result:
    servers: dict[str, Opener] = {"cdrs": ours, "B0": naive}
    rows: list[list[str]] = []
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    for number in range(runs):
        for name, opened in servers.items():
            with opened() as server, loading_many(server, SUBSCRIBERS, group=GROUP, churn=CHURN) as loader:
                loader.rounds(WARM, batch=BATCH)
                idle = loader.idle(3)
                said = loader.rounds(ROUNDS, batch=BATCH)
            found[name].append(said)
            rows.append(row(number, name, said, idle))
    text = {name: words(said) for name, said in found.items()}
    return Result(
        ["run", "server", "events/s", "deliveries/s", "p50 ms", "p99 ms", "max ms", "core", "of it idle",
         "CPU us/delivery", "came and went", "loader", "all"],
        rows,
        text["cdrs"],
        text["B0"],
        f"p99 <= {LIMIT_MS} ms at <= {LIMIT_CORE:.0%} of the core",
        [f"one event a second to each of {SUBSCRIBERS:,} private streams and {SUBSCRIBERS // GROUP:,} groups",
         f"{SUBSCRIBERS + SUBSCRIBERS // GROUP:,} events/s in, {2 * SUBSCRIBERS:,} deliveries/s out",
         f"as NDJSON over one connection; {CHURN} connects a second, each for 3 s",
         "every event is stored with fsync first (B0 stores nothing)",
         "core: CPU of the server per second, publishing and storing included; all: every delivery, once, in order"],
        figures={name: {"p99_ms": middle(said, "p99_ms"), "us/delivery": cost(said)} for name, said in found.items()},
    )  # fmt: skip


def core(said: dict[str, Any]) -> float:
    return float(said["cpu"] / said["took"])


def cost(said: list[dict[str, Any]]) -> float:
    """Microseconds of CPU for a delivery, publishing and storing included."""
    return float(statistics.median(one["cpu"] / max(1, one["deliveries"]) * 1e6 for one in said))


def middle(said: list[dict[str, Any]], key: str) -> float:
    return float(statistics.median(one[key] for one in said))


def words(said: list[dict[str, Any]]) -> str:
    share = statistics.median(core(one) for one in said)
    whole = "" if all(map(sound, said)) else ", NOT all delivered in time"
    return f"p50 {middle(said, 'p50_ms'):.1f}, p99 {middle(said, 'p99_ms'):.1f} ms at {share:.0%} of the core{whole}"


def row(number: int, name: str, said: dict[str, Any], idle: float) -> list[str]:
    took = said["took"]
    return [
        str(number + 1), name, f"{said['published'] / took:,.0f}", f"{said['deliveries'] / took:,.0f}",
        *(f"{said[key]:.1f}" for key in ("p50_ms", "p99_ms", "max_ms")), f"{core(said):.2f}", f"{idle:.2f}",
        f"{said['cpu'] / max(1, said['deliveries']) * 1e6:.1f}", str(said["guests"]),
        f"{said['loader_cpu'] / took:.2f}", "yes" if sound(said) else "NO",
    ]  # fmt: skip
