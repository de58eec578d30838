"""Single POSTs over 32 keep-alive connections, ours and the plain handler in turns."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence

from cdrs_process import CdrsProcess, environment, pinned
from machine import HERE, LOADER_CPUS, baseline_server, cpu_seconds, folder, fsync_ms, our_server
from report import Result

RUNS = 3
CONNECTIONS = 32
SECONDS = 6
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def run(runs: int) -> Result:
    rows, ours, plain, pooled = [], [], [], []
    with folder() as path:
        sync = fsync_ms(path)
    for number in range(runs):
        with baseline_server() as (port, pid):
            load(port, 1, "/store/", "")
            before = cpu_seconds(pid)
            rate, *times = load(port, SECONDS, "/store/", "")
            plain.append(rate)
            rows.append(row(number, "plain, commit in the loop", rate, times, cpu_seconds(pid) - before))
            before = cpu_seconds(pid)
            rate, *times = load(port, SECONDS, "/store-in-thread/", "")
            pooled.append(rate)
            rows.append(row(number, "plain, commit in a thread", rate, times, cpu_seconds(pid) - before))
        with our_server() as cdrs:
            load(cdrs.port, 1, "/v1/streams/bench.", "/events")
            before = cpu_seconds(cdrs.pid)
            rate, *times = load(cdrs.port, SECONDS, "/v1/streams/bench.", "/events")
            ours.append(rate)
            rows.append(row(number, "cdrs", rate, times, cpu_seconds(cdrs.pid) - before))
            check_stored(cdrs, rate * SECONDS)
    mine, theirs, threaded = (statistics.median(rates) for rates in (ours, plain, pooled))
    return Result(
        ["run", "server", "POST/s", "p50 ms", "p99 ms", "max ms", "CPU us/POST"], rows,
        f"{mine:,.0f} POST/s, {mine / theirs:.1f} x and {mine / threaded:.1f} x the baselines (medians of {runs})",
        f"starlette on uvicorn, one SQLite commit per request (WAL, synchronous=FULL): {theirs:,.0f} POST/s in the "
        f"loop's thread, {threaded:,.0f} in a worker thread (what keeps the loop free)",
        ">= 3 x the baseline",
        [f"loader: {'wrk' if shutil.which('wrk') else 'post_load.py'}; fdatasync {sync:.2f} ms",
         "server on one core, loader on the other"],
    )  # fmt: skip


def row(number: int, server: str, rate: float, times: Sequence[float], cpu: float) -> Sequence[str]:
    return [
        str(number + 1), server, f"{rate:,.0f}", *(f"{each:.2f}" for each in times),
        f"{cpu / (rate * SECONDS) * 1e6:.0f}",
    ]  # fmt: skip


def load(port: int, seconds: int, prefix: str, suffix: str, lines: int = 0) -> tuple[float, float, float, float]:
    """Requests a second, p50, p99 and the longest in ms; each one event, or so many lines of NDJSON. Raises where any
    answer was not 2xx."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return own_load(port, seconds, prefix, suffix, lines)
    done = subprocess.run(
        [*pinned(LOADER_CPUS), wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", "--latency", "-s",
         str(HERE / "post.lua"), f"http://127.0.0.1:{port}", "--", prefix, suffix, str(lines)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Non-2xx" not in done.stdout, done.stdout
    assert "Socket errors" not in done.stdout, done.stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    shares = re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", done.stdout)
    times = {share: float(number) * _UNITS[unit] for share, number, unit in shares}
    most = re.search(r"Latency(?:\s+[\d.]+(?:us|ms|s)){2}\s+([\d.]+)(us|ms|s)", done.stdout)
    assert rate is not None, done.stdout
    assert most is not None, done.stdout
    return float(rate[1]), times["50"], times["99"], float(most[1]) * _UNITS[most[2]]


def own_load(port: int, seconds: int, prefix: str, suffix: str, lines: int) -> tuple[float, float, float, float]:
    done = subprocess.run(
        [*pinned(LOADER_CPUS), sys.executable, str(HERE / "post_load.py"), str(port), str(CONNECTIONS), str(seconds),
         prefix, suffix, str(lines)],
        env=environment(), capture_output=True, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert said["bad"] == 0, said
    return said["requests"] / said["seconds"], said["p50_ms"], said["p99_ms"], said["max_ms"]


def check_stored(cdrs: CdrsProcess, at_least: float) -> None:
    """What was answered with 201 is there."""
    streams = cdrs.request("GET", "/v1/streams?limit=1000", headers={"accept": "application/json"}).json()["streams"]
    stored = sum(stream["events"] for stream in streams)
    assert stored >= at_least * 0.99, (stored, at_least)
