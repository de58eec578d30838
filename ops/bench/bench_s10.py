"""S10: from a POST through gateway, node and log to every one of 1,000 subscribers, at 200 events/s, all roles real."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import instructions
import pytest
from cdrs_process import CdrsProcess
from engines_rig import engines, our_processes
from fan_out import STREAM, Opener, Server, floor, loading, naive, sound
from machine import ROLE_CPUS, our_server
from report import Result

RUNS = 3
SUBSCRIBERS = 1_000
RATE = 200
RATES = {"B0": 20}
"""Who is given fewer."""
SECONDS = 15
CONNECTIONS = 8
NODES = 3


def run(runs: int) -> Result:
    servers: dict[str, Opener] = {"F": floor, "cdrs": embedded, "B0": naive}
    if has_engines():
        servers["engines"] = distributed
    rows: list[list[str]] = []
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    for number in range(runs):
        for name, opened in servers.items():
            with opened() as server, loading(server, SUBSCRIBERS) as loader:
                rate = RATES.get(name, RATE)
                loader.publish(rate=rate, seconds=2, connections=CONNECTIONS)
                said = loader.publish(rate=rate, seconds=SECONDS, connections=CONNECTIONS)
            found[name].append(said)
            rows.append([
                str(number + 1), name, *(f"{said[key]:.1f}" for key in ("p50_ms", "p99_ms", "max_ms")),
                f"{said['cpu'] / said['took']:.2f}", f"{said['cpu'] / max(1, said['deliveries']) * 1e6:.1f}",
                f"{said['rss_kib'] / 1024:.0f}", f"{said['loader_cpu'] / said['took']:.2f}",
                *instructions.cell(said), "yes" if sound(said) else "NO",
            ])  # fmt: skip
    text = {name: words(said, runs) for name, said in found.items()}
    return Result(
        ["run", "server", "p50 ms", "p99 ms", "max ms", "cores", "CPU us/delivery", "MiB", "loader",
         *instructions.column(), "all"],
        rows,
        f"embedded {text['cdrs']}" + (f"; Kafka, Hazelcast and MongoDB {text['engines']}" if "engines" in text else ""),
        f"B0, one process that stores nothing: {text['B0']}; F, plain send() in C: {text['F']}",
        "embedded p50 <= 5, p99 <= 30 ms; engines p50 <= 15, p99 <= 60 ms",
        [f"single POSTs of 200 bytes over {CONNECTIONS} connections, from when they were due to the read at each one",
         f"a gateway and {NODES} nodes, each a process, all on {len(ROLE_CPUS)} of the cores, the loader on another",
         "cores: CPU of our processes per second, engines not counted",
         f"B0 is given {RATES['B0']} events/s: a queue and a write for each subscriber and event is all it can do",
         instructions.note()],
        figures={name: figures(said) for name, said in found.items()},
    )  # fmt: skip


def has_engines() -> bool:
    """Whether a set of engines runs (`scripts/engines up`)."""
    try:
        with engines():
            return True
    except pytest.skip.Exception:
        return False


@contextmanager
def embedded() -> Iterator[Server]:
    with our_server(["--nodes", str(NODES)], cpus=ROLE_CPUS) as cdrs:
        yield served(cdrs)


@contextmanager
def distributed() -> Iterator[Server]:
    with engines() as rig, our_processes(rig, "--nodes", str(NODES), cpus=ROLE_CPUS) as cdrs:
        yield served(cdrs)


def served(cdrs: CdrsProcess) -> Server:
    path = f"/v1/streams/{STREAM}/events"
    assert cdrs.publish(STREAM, b"{}").status == 201
    return Server("cdrs", cdrs.port, (*cdrs.pids("gateway"), *cdrs.pids("node")), path, path, "cdrs.caught-up")


def figures(measured: list[dict[str, Any]]) -> dict[str, float]:
    cost = statistics.median(said["cpu"] / max(1, said["deliveries"]) * 1e6 for said in measured)
    found = {"p50_ms": middle(measured, "p50_ms"), "p99_ms": middle(measured, "p99_ms"), "us/delivery": cost}
    counted = instructions.middle(measured)
    return found if counted is None else found | {"instructions/delivery": counted}


def middle(said: list[dict[str, Any]], key: str) -> float:
    return float(statistics.median(one[key] for one in said))


def words(said: list[dict[str, Any]], runs: int) -> str:
    whole = "" if all(map(sound, said)) else ", NOT all delivered"
    return f"p50 {middle(said, 'p50_ms'):.1f}, p99 {middle(said, 'p99_ms'):.1f} ms (medians of {runs}){whole}"
