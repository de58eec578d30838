"""What an idle server costs, alone and with 1,000 idle subscribers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cdrs_process import environment, pinned
from machine import HERE, LOADER_CPUS, baseline_server, cpu_share, our_server, rss_kib
from report import Result

RUNS = 1
SUBSCRIBERS = 1000
SECONDS = 20


def run(runs: int) -> Result:
    rows: list[list[str]] = []
    figures: dict[str, tuple[float, float, float, float]] = {}
    for _ in range(runs):
        with baseline_server() as (port, pid):
            figures["naive"] = measure(port, pid, "/events")
        with our_server(warm=False) as cdrs:
            figures["cdrs"] = measure(cdrs.port, cdrs.pid, "/v1/streams/bench.idle/events")
        rows += [
            [server, f"{rss / 1024:.0f}", f"{cpu * 100:.2f}", f"{each:.1f}", f"{each_cpu * 1e6 / SUBSCRIBERS:.1f}"]
            for server, (rss, cpu, each, each_cpu) in figures.items()
        ]
    rss, cpu, each, each_cpu = figures["cdrs"]
    plain = figures["naive"]
    return Result(
        ["server", "RSS MiB", "CPU % of a core", "KiB/subscriber", "CPU us/s per subscriber"], rows,
        f"{rss / 1024:.0f} MiB resident, {cpu * 100:.2f} % of a core; each idle subscriber {each:.1f} KiB and "
        f"{each_cpu * 1e6 / SUBSCRIBERS:.1f} us of CPU a second",
        f"{plain[0] / 1024:.0f} MiB, {plain[1] * 100:.2f} %; {plain[2]:.1f} KiB and "
        f"{plain[3] * 1e6 / SUBSCRIBERS:.1f} us/s each: sse-starlette with a queue per subscriber",
        "<= 120 MB resident, <= 1 % of a core; the price of a subscriber said plainly",
        [
            f"CPU over {SECONDS} s; {SUBSCRIBERS} subscribers of one quiet stream, heartbeat every 15 s",
            "KiB in the server's process, the kernel's socket buffers (about 5 KiB each) not counted",
        ],
    )  # fmt: skip


def measure(port: int, pid: int, path: str) -> tuple[float, float, float, float]:
    """RSS in KiB and share of a core when idle, then KiB and share of a core that the subscribers add."""
    time.sleep(3)
    cpu = cpu_share(pid, SECONDS)
    rss = rss_kib(pid)
    with subscribers(port, path):
        time.sleep(2)
        # A multiple of the heartbeat, so that every subscriber's is counted as often as any other's.
        busy = cpu_share(pid, 30)
        grown = rss_kib(pid)
    return rss, cpu, (grown - rss) / SUBSCRIBERS, busy - cpu


@contextmanager
def subscribers(port: int, path: str) -> Iterator[None]:
    loader = subprocess.Popen(
        [*pinned(LOADER_CPUS), sys.executable, str(HERE / "fan_load.py"), "idle", str(port), str(SUBSCRIBERS), path],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert loader.stdout is not None
        assert loader.stdin is not None
        assert loader.stdout.readline() == "open\n"
        yield
        loader.stdin.close()
        assert loader.stdout.readline() == '{"lost": 0}\n'
    finally:
        loader.kill()
        loader.wait(5)
