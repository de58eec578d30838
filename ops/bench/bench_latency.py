"""From POST to every one of 100 subscribers, at 200 events/s."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from cdrs_process import environment, pinned
from machine import HERE, LOADER_CPUS, baseline_server, cpu_seconds, our_server
from report import Result

RUNS = 3
SUBSCRIBERS = 100
RATE = 200
SECONDS = 15


def run(runs: int) -> Result:
    rows, ours, plain = [], [], []
    for number in range(runs):
        with baseline_server() as (port, pid):
            before = cpu_seconds(pid)
            said = load(port, "/events", "/publish")
            plain.append(said)
            rows.append(row(number, "naive", said, cpu_seconds(pid) - before))
        with our_server() as cdrs:
            before = cpu_seconds(cdrs.pid)
            said = load(cdrs.port, "/v1/streams/bench.latency/events", "/v1/streams/bench.latency/events")
            ours.append(said)
            rows.append(row(number, "cdrs", said, cpu_seconds(cdrs.pid) - before))
    p50, p99 = middle(ours, "p50_ms"), middle(ours, "p99_ms")
    return Result(
        ["run", "server", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "CPU us/delivery"], rows,
        f"p50 {p50:.1f} ms, p99 {p99:.1f} ms (medians of {runs}), stored with fsync before delivery",
        f"p50 {middle(plain, 'p50_ms'):.1f} ms, p99 {middle(plain, 'p99_ms'):.1f} ms: sse-starlette with a queue per "
        "subscriber, nothing stored",
        "p50 <= 10 ms, p99 <= 40 ms",
        [f"{RATE} events/s of about 200 bytes for {SECONDS} s to {SUBSCRIBERS} subscribers; all deliveries counted",
         "stamp before the POST is written, time of the read at the subscriber, one clock",
         "server on one core, loader on the other"],
    )  # fmt: skip


def load(port: int, events: str, post: str) -> dict[str, Any]:
    done = subprocess.run(
        [*pinned(LOADER_CPUS), sys.executable, str(HERE / "fan_load.py"), "latency", str(port), str(SUBSCRIBERS),
         str(RATE), str(SECONDS), events, post],
        env=environment(), capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["deliveries"] == said["expected"], said
    assert said["lost"] == 0, said
    assert said["statuses"] == ["201"], said
    return said


def row(number: int, server: str, said: Mapping[str, Any], cpu: float) -> list[str]:
    figures = [f"{said[name]:.1f}" for name in ("p50_ms", "p99_ms", "p999_ms", "max_ms")]
    return [str(number + 1), server, *figures, f"{cpu / said['deliveries'] * 1e6:.0f}"]


def middle(said: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(one[name] for one in said))
