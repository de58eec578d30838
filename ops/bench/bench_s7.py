"""S7: what a POST costs without a disk, ours and a plain handler in turns: single events, and 100 as NDJSON."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import instructions
from bench_post import load
from machine import baseline_server, ended_seconds, null_server, rss_kib, thread_seconds
from report import Result

RUNS = 3
SECONDS = 5
LINES = 100
HOWS = {"single": 0, "NDJSON": LINES}
Started = Callable[[], AbstractContextManager[tuple[int, int]]]
SERVERS: dict[str, tuple[Started, dict[str, tuple[str, str]]]] = {
    "plain": (baseline_server, {"single": ("/null/", ""), "NDJSON": ("/null-lines/", "")}),
    "cdrs": (null_server, dict.fromkeys(HOWS, ("/v1/streams/bench.", "/events"))),
}
"""How each is started, and where events are sent: before and behind the number of the stream."""


@dataclass
class Found:
    """Of one server and one way of publishing."""

    rate: float
    """Events a second."""
    times: list[float]
    """p50, p99 and max of a request, in ms."""
    cpu: float
    """Seconds for an event; so are instructions."""
    counted: float | None
    mib: float
    loader: float


def run(runs: int) -> Result:
    rows: list[list[str]] = []
    found: dict[tuple[str, str], list[Found]] = {}
    for number in range(runs):
        for name, (started, paths) in SERVERS.items():
            with started() as (port, pid):
                for how, (prefix, suffix) in paths.items():
                    one = measure(port, pid, prefix, suffix, HOWS[how])
                    found.setdefault((name, how), []).append(one)
                    rows.append(row(number, f"{name}, {how}", one))
    n = {key: statistics.median(one.rate for one in of) for key, of in found.items()}
    ratio = {how: n["cdrs", how] / n["plain", how] for how in HOWS}
    return Result(
        ["run", "what", "events/s", "p50 ms", "p99 ms", "max ms", "CPU us/event", "MiB", "loader",
         *(["instructions/event"] if instructions.is_supported() else [])],
        rows,
        f"single {n['cdrs', 'single']:,.0f}/s, {ratio['single']:.1f} x the baseline; NDJSON "
        f"{n['cdrs', 'NDJSON']:,.0f} events/s, {ratio['NDJSON']:.1f} x (medians of {runs})",
        f"starlette + orjson under uvicorn, parses and answers, keeps nothing: single {n['plain', 'single']:,.0f}/s, "
        f"NDJSON {n['plain', 'NDJSON']:,.0f} events/s",
        "single >= 2.2 x the baseline, NDJSON >= 150,000 events/s",
        [f"loader: {'wrk' if shutil.which('wrk') else 'post_load.py'}; its column: the share of its core that it used",
         "server on one core, loader on the other",
         instructions.note()],
        figures={name: figures(found, name) for name in SERVERS},
    )  # fmt: skip


def measure(port: int, pid: int, prefix: str, suffix: str, lines: int) -> Found:
    load(port, 1, prefix, suffix, lines)
    with instructions.counting([pid]) as counted:
        before, own = thread_seconds(pid), ended_seconds()
        rate, *times = load(port, SECONDS, prefix, suffix, lines)
        cpu, spent = thread_seconds(pid) - before, ended_seconds() - own
    rate *= lines or 1
    events = rate * SECONDS
    each = None if counted.value is None else counted.value / events
    return Found(rate, times, cpu / events, each, rss_kib(pid) / 1024, spent / SECONDS)


def figures(found: dict[tuple[str, str], list[Found]], name: str) -> dict[str, float]:
    """For an event: the server's CPU, the time between two, and its instructions where they are counted."""
    of: dict[str, float] = {}
    for how in HOWS:
        measured = found[name, how]
        of[f"us/event, {how}"] = statistics.median(one.cpu for one in measured) * 1e6
        of[f"wall us/event, {how}"] = 1e6 / statistics.median(one.rate for one in measured)
        of[f"p99_ms, {how}"] = statistics.median(one.times[1] for one in measured)
        counted = [one.counted for one in measured if one.counted is not None]
        if len(counted) == len(measured):
            of[f"instructions/event, {how}"] = statistics.median(counted)
    return of


def row(number: int, what: str, one: Found) -> list[str]:
    counted = ["-" if one.counted is None else f"{one.counted:,.0f}"] if instructions.is_supported() else []
    return [
        str(number + 1), what, f"{one.rate:,.0f}", *(f"{each:.2f}" for each in one.times), f"{one.cpu * 1e6:.1f}",
        f"{one.mib:.0f}", f"{one.loader:.2f}", *counted,
    ]  # fmt: skip
