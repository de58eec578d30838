"""S7: what a POST costs without a disk, ours and a plain handler in turns: single events, and 100 as NDJSON."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence

from bench_post import load
from machine import baseline_server, cpu_seconds, null_server
from report import Result

RUNS = 3
SECONDS = 5
LINES = 100


def run(runs: int) -> Result:
    rows: list[Sequence[str]] = []
    rates: dict[str, list[float]] = {}
    for number in range(runs):
        with baseline_server() as (port, pid):
            rates.setdefault("plain", []).append(measure(rows, number, "plain, single", port, pid, "/null/", "", 0))
            rates.setdefault("plain lines", []).append(
                measure(rows, number, "plain, NDJSON", port, pid, "/null-lines/", "", LINES)
            )
        with null_server() as (port, pid):
            path = "/v1/streams/bench."
            rates.setdefault("cdrs", []).append(measure(rows, number, "cdrs, single", port, pid, path, "/events", 0))
            rates.setdefault("cdrs lines", []).append(
                measure(rows, number, "cdrs, NDJSON", port, pid, path, "/events", LINES)
            )
    n = {name: statistics.median(found) for name, found in rates.items()}
    return Result(
        ["run", "what", "events/s", "p50 ms", "p99 ms", "CPU us/event"], rows,
        f"single {n['cdrs']:,.0f}/s, {n['cdrs'] / n['plain']:.1f} x the baseline; NDJSON "
        f"{n['cdrs lines']:,.0f} events/s, {n['cdrs lines'] / n['plain lines']:.1f} x (medians of {runs})",
        f"starlette + orjson under uvicorn, parses and answers, keeps nothing: single {n['plain']:,.0f}/s, "
        f"NDJSON {n['plain lines']:,.0f} events/s",
        "single >= 2.2 x the baseline, NDJSON >= 150,000 events/s",
        [f"loader: {'wrk' if shutil.which('wrk') else 'post_load.py'}", "server on one core, loader on the other"],
    )  # fmt: skip


def measure(
    rows: list[Sequence[str]], number: int, what: str, port: int, pid: int, prefix: str, suffix: str, lines: int
) -> float:
    load(port, 1, prefix, suffix, lines)
    before = cpu_seconds(pid)
    rate, p50, p99 = load(port, SECONDS, prefix, suffix, lines)
    rate *= lines or 1
    cost = (cpu_seconds(pid) - before) / (rate * SECONDS) * 1e6
    rows.append([str(number + 1), what, f"{rate:,.0f}", f"{p50:.2f}", f"{p99:.2f}", f"{cost:.1f}"])
    return rate
