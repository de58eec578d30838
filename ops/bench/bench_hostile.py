"""Clients that read a byte a second, never, or end, talk, pipeline, reset and vanish: what others feel of them, and
what each kind makes the server hold, also those that ask for history, or again and again, and read nothing."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bad_load import GREEDY, KINDS
from cdrs_process import environment, pinned
from fan_out import Loader, Server, loading, ours, sound
from machine import HERE, LOADER_CPUS
from report import Result

RUNS = 5
GOOD, BAD = 1_000, 300
SHARE = 0.35
"""Of the core that the good ones' deliveries shall take: one that has nothing left shows its queue and nothing else."""
SECONDS = 10
SETTLED = 1.5
"""Seconds after which those who came or went before a measurement are dealt with."""

KIND, FIRST = 100, 25
"""Clients of one kind when its memory is measured, beside the first ones, for whom code is loaded and heaps grow."""
HISTORY = 20_000
"""Events that there are for those who ask for history."""
BURST, BURST_RATE = 3.0, 500.0
"""Seconds, and events a second as NDJSON: more than a socket and a write hold for one who does not read."""
LIMIT_KIB = 256

Measures = dict[str, list[dict[str, Any]]]


def run(runs: int) -> Result:
    measures: Measures = {"alone": [], "more good ones": [], "bad ones": []}
    own: list[float] = []
    kernel: list[float] = []
    with ours() as server, loading(server, GOOD) as loader:
        rate = affordable(loader)
        for number in range(runs):
            before, _ = memory(server)
            measures["alone"].append(measure(loader, rate))
            for which in ("more good ones", "bad ones") if number % 2 else ("bad ones", "more good ones"):
                with misbehaving(server) if which == "bad ones" else loading(server, BAD):
                    measures[which].append(measure(loader, rate))
                    if which == "bad ones":
                        resident, fullest = memory(server)
                        own.append((resident - before) / BAD)
                        kernel.append(fullest)
    result = told(measures, rate, max(own), max(kernel))
    kinds = {kind: held(kind) for kind in (*KINDS, *GREEDY)}
    add_kinds(result, kinds)
    return result


def affordable(loader: Loader) -> float:
    """Events a second of which the server has time for more."""
    for rate in (5.0, 10.0):  # the first one warms up
        said = measure(loader, rate)
    return float(round(SHARE * said["deliveries"] / said["cpu"] / GOOD, 1))


def measure(loader: Loader, rate: float) -> dict[str, Any]:
    time.sleep(SETTLED)
    return loader.publish(rate=rate, seconds=SECONDS)


def told(measures: Measures, rate: float, kib: float, sockets: float) -> Result:
    rows = [
        [str(number + 1), what, *(f"{said[key]:.1f}" for key in ("p50_ms", "p99_ms", "max_ms")),
         f"{said['cpu'] / said['took'] * 100:.0f}", f"{said['rss_kib'] / 1024:.0f}",
         f"{said['loader_cpu'] / said['took']:.2f}", "yes" if sound(said) else "NO"]
        for number in range(len(measures["alone"]))
        for what, all_said in measures.items() for said in (all_said[number],)
    ]  # fmt: skip
    median = {what: statistics.median(said["p99_ms"] for said in of) for what, of in measures.items()}
    pairs = list(zip(measures["more good ones"], measures["bad ones"], strict=True))
    ratio = statistics.median(bad["p99_ms"] / good["p99_ms"] for good, bad in pairs)
    cpu = statistics.median(bad["cpu"] / good["cpu"] for good, bad in pairs)
    whole = "" if all(sound(said) for of in measures.values() for said in of) else "; NOT all delivered"
    holds = f"each bad client holds at most {max(kib, 0):.0f} KiB of the process and {sockets:.0f} KiB of the kernel"
    return Result(
        ["run", "beside them", "p50 ms", "p99 ms", "max ms", "CPU %", "MiB", "loader", "all"], rows,
        f"the others' p99 {ratio:.2f} x, CPU {cpu:.2f} x (medians of {len(pairs)} pairs); {holds}{whole}",
        f"{BAD} good clients in their stead: p99 {median['more good ones']:.1f} ms; alone: {median['alone']:.1f} ms",
        f"p99 within 5 %, <= {LIMIT_KIB} KiB each",
        [f"{GOOD} good subscribers, {rate:g} events/s, one POST each: about {SHARE * 100:.0f} % of the core",
         f"{BAD} bad ones of {len(KINDS)} kinds (ops/bench/bad_load.py), or as many good ones, beside them",
         "of the process: its resident memory with and without them, for each; of the kernel: the fullest send buffer"],
        figures={"cdrs": {"p99 ratio": ratio, "CPU ratio": cpu, "KiB": max(kib, 0.01), "socket KiB": sockets}},
    )  # fmt: skip


def held(kind: str) -> tuple[float, float]:
    """KiB of the process, and of the fullest socket, for each client of a kind while events come."""

    def burst(loader: Loader) -> None:
        loader.publish(rate=BURST_RATE, seconds=BURST, batch=int(BURST_RATE))

    with ours() as server, loading(server, 10) as loader:
        loader.publish(rate=10 * BURST_RATE, seconds=HISTORY / BURST_RATE / 10, batch=int(BURST_RATE))
        with misbehaving(server, FIRST, kind):
            burst(loader)
            first = server.rss()
            burst(loader)
            before = server.rss()
            with misbehaving(server, KIND, kind):
                burst(loader)
                sockets = [sum(sizes) for sizes in buffers(server)]
                grown = server.rss() - before - max(before - first, 0)  # a burst alone leaves a little, too
                return max(grown, 0) / KIND, max(sockets, default=0.0)


def add_kinds(result: Result, kinds: dict[str, tuple[float, float]]) -> None:
    """Put what each kind holds beside the rest."""
    told = "; ".join(f"{kind} {own:.0f} + {kernel:.0f}" for kind, (own, kernel) in kinds.items())
    result.notes.append(f"KiB of the process + of the kernel for each of {KIND} clients of one kind: {told}")
    over = [kind for kind, sizes in kinds.items() if sum(sizes) > LIMIT_KIB]
    most = max(kinds, key=lambda kind: sum(kinds[kind]))
    result.figure += f"; by kinds at most {sum(kinds[most]):.0f} KiB in all ({most})"
    result.figure += f", NOT within {LIMIT_KIB}: {', '.join(over)}" if over else ""
    result.figures["cdrs"] |= {f"KiB, {kind}": sum(sizes) for kind, sizes in kinds.items()}


def buffers(server: Server) -> list[tuple[float, float]]:
    """KiB that the kernel holds of each connection: received and not read, and to be sent."""
    listed = subprocess.run(
        ["ss", "-tmnH", "sport", "=", str(server.port)], capture_output=True, text=True, check=True
    ).stdout
    return [(int(got) / 1024, int(out) / 1024) for got, out in re.findall(r"skmem:\(r(\d+),.*?,w(\d+),", listed)]


def memory(server: Server) -> tuple[float, float]:
    """KiB of the process, and of the largest send buffer among its connections, as the kernel accounts for it."""
    return server.rss(), max((out for _, out in buffers(server)), default=0.0)


@contextmanager
def misbehaving(server: Server, count: int = BAD, *kinds: str) -> Iterator[None]:
    argv = [sys.executable, str(HERE / "bad_load.py"), str(server.port), server.events, str(count), *kinds]
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
