"""Clients that read a byte a second, never, or end, talk, pipeline and reset: what they cost, and what others feel."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cdrs_process import environment, pinned
from fan_out import Loader, Server, loading, ours, sound
from machine import HERE, LOADER_CPUS
from report import Result

RUNS = 5
GOOD, BAD = 1_000, 300
RATE, SECONDS, BATCH = 300, 6, 100


def run(runs: int) -> Result:
    rows: list[list[str]] = []
    quiet: list[dict[str, Any]] = []
    beset: list[dict[str, Any]] = []
    own: list[float] = []
    kernel: list[float] = []
    with ours() as server, loading(server, GOOD) as loader:
        measure(loader)
        for number in range(runs):
            before = memory(server)
            quiet.append(measure(loader))
            with misbehaving(server):
                beset.append(measure(loader))
                now = memory(server)
            own.append((now[0] - before[0]) / BAD)
            kernel.append(now[1])
            for what, said in (("quiet", quiet[-1]), (f"{BAD} bad clients", beset[-1])):
                rows.append([
                    str(number + 1), what, *(f"{said[key]:.1f}" for key in ("p50_ms", "p99_ms", "max_ms")),
                    f"{said['cpu'] / said['deliveries'] * 1e6:.2f}", "yes" if sound(said) else "NO",
                ])  # fmt: skip
    ratio = statistics.median(b["p99_ms"] / q["p99_ms"] for q, b in zip(quiet, beset, strict=True))
    cpu = statistics.median(b["cpu"] / q["cpu"] for q, b in zip(quiet, beset, strict=True))
    kib, sockets = max(own), max(kernel, default=0.0)
    whole = "" if all(map(sound, quiet + beset)) else "; NOT all delivered"
    return Result(
        ["run", "with", "p50 ms", "p99 ms", "max ms", "CPU us/delivery", "all"], rows,
        f"others' p99 {ratio:.2f} x, CPU {cpu:.2f} x (medians of {runs} pairs); each bad client holds at most "
        f"{max(kib, 0):.0f} KiB of the process and {sockets:.0f} KiB of the kernel{whole}",
        f"the same server without them, before each: p99 {statistics.median(q['p99_ms'] for q in quiet):.1f} ms",
        "p99 within 5 %, <= 256 KiB each",
        [f"{GOOD} good subscribers, {RATE} events/s by NDJSON; {BAD} bad ones of six kinds (ops/bench/bad_load.py)",
         "of the process: its resident memory with and without them, for each; of the kernel: the fullest send buffer"],
        figures={"cdrs": {"p99 ratio": ratio, "CPU ratio": cpu, "KiB": max(kib, 0.01), "socket KiB": sockets}},
    )  # fmt: skip


def measure(loader: Loader) -> dict[str, Any]:
    return loader.publish(rate=RATE, seconds=SECONDS, batch=BATCH)


def memory(server: Server) -> tuple[float, float]:
    """KiB of the process, and of the largest send buffer among its connections, as the kernel accounts for it."""
    listed = subprocess.run(
        ["ss", "-tmnH", "sport", "=", str(server.port)], capture_output=True, text=True, check=True
    ).stdout
    return server.rss(), max((int(queued) / 1024 for queued in re.findall(r",w(\d+),", listed)), default=0.0)


@contextmanager
def misbehaving(server: Server) -> Iterator[None]:
    argv = [sys.executable, str(HERE / "bad_load.py"), str(server.port), server.events, str(BAD)]
    process = subprocess.Popen(
        [*pinned(LOADER_CPUS), *argv], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield
    finally:
        process.kill()
        process.wait(5)
