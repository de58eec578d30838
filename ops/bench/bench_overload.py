"""Overload: three times the load that saturates, in an open loop, against the peak of the same run."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
from typing import Any

from cdrs_process import CdrsProcess, environment, pinned
from fan_out import all_descriptors, compiled
from machine import LOADER_CPUS, our_server, rss_kib, thread_seconds
from report import Result

RUNS = 3
PEAK_SECONDS = 4
SECONDS = 12
TIMES = 3
KINDS = {"single POSTs": (0, 64, 2_000), "batches of 100": (100, 16, 600)}
"""Name → events of a request (0: one, plain), connections that saturate, connections of the overload."""


def run(runs: int) -> Result:
    all_descriptors()
    rows: list[list[str]] = []
    found: dict[str, list[dict[str, float]]] = {}
    for number in range(runs):
        for name, (batch, few, many) in KINDS.items():
            with our_server() as cdrs:
                load(cdrs, few, 0, 1, batch)
                peak = load(cdrs, few, 0, PEAK_SECONDS, batch)
                over = load(cdrs, many, TIMES * peak["rate"], SECONDS, batch)
            over |= {"goodput": over["rate"] / peak["rate"], "economy": over["per_cpu"] / peak["per_cpu"]}
            found.setdefault(name, []).append(over)
            rows.append([
                str(number + 1), name, f"{peak['rate']:,.0f}", f"{over['rate']:,.0f}", f"{over['goodput']:.2f}",
                f"{over['economy']:.2f}", f"{over['refused']:,.0f}", f"{over['refused_p50']:.0f}",
                f"{over['refused_p99']:.0f}", f"{over['stored_p99']:,.0f}",
                f"{over['rss_half'] / 1024:.0f} -> {over['rss_end'] / 1024:.0f}", f"{over['bad']:.0f}",
            ])  # fmt: skip
    return Result(
        ["run", "what", "peak/s", "at 3 x", "goodput", "per CPU", "refused", "p50 ms", "p99 ms", "stored p99 ms",
         "RSS MiB half-way -> end", "other answers"],
        rows,
        "; ".join(words(name, all_of) for name, all_of in found.items()),
        "the peak of the same server: as many requests as it takes over 64 and 16 connections",
        "goodput >= 0.9 of the peak, refusals <= 50 ms at p99, memory flat",
        [f"open loop of {TIMES} x the peak's rate for {SECONDS} s over 2,000 and 600 connections; server on one core",
         "goodput: stored requests a second against the peak; per CPU: for a second of the server's CPU",
         "refused: 503 with Retry-After, times from sending; other answers: anything else, and broken connections"],
    )  # fmt: skip


def words(name: str, found: list[dict[str, float]]) -> str:
    median = {key: statistics.median(each[key] for each in found) for key in found[0]}
    text = f"{name}: goodput {median['goodput']:.2f} of the peak ({median['economy']:.2f} for a second of CPU)"
    if median["refused"]:
        text += f", refusals p50 {median['refused_p50']:.0f} ms, p99 {median['refused_p99']:.0f} ms"
    else:
        text += ", nothing refused"
    text += f", memory {median['rss_half'] / 1024:.0f} -> {median['rss_end'] / 1024:.0f} MiB"
    return text + (f", {median['bad']:.0f} other answers" if median["bad"] else "")


def load(cdrs: CdrsProcess, connections: int, rate: float, seconds: int, batch: int) -> dict[str, Any]:
    argv = [
        *pinned(LOADER_CPUS), str(compiled("overload")), str(cdrs.port), str(connections), str(rate), str(seconds),
        str(batch), "/v1/streams/load.", "/events",
    ]  # fmt: skip
    half: list[int] = []
    timer = threading.Timer(1 + seconds / 2, lambda: half.append(rss_kib(cdrs.pid)))
    timer.start()
    before = thread_seconds(cdrs.pid)
    done = subprocess.run(argv, env=environment(), stdout=subprocess.PIPE, stderr=sys.stderr, text=True, check=True)
    cpu = thread_seconds(cdrs.pid) - before
    timer.join()
    said: dict[str, Any] = json.loads(done.stdout)
    rate = said["stored"] / said["seconds"]
    bad = said["other"] + said["broken"] + said["without_retry_after"]
    # The loader's first second is not counted, but worked on.
    share = rate * (said["seconds"] + 1) / max(cpu, 1e-9)
    return said | {"rate": rate, "per_cpu": share, "rss_half": half[0], "rss_end": rss_kib(cdrs.pid), "bad": bad}
