"""S2: one stream, one event of 200 bytes at a time, 1,000 to 10,000 subscribers: CPU of a delivery against C's."""

from __future__ import annotations

import statistics
from typing import Any

import instructions
from fan_out import Loader, Opener, all_descriptors, floor, loading, naive, ours, peers, sound
from report import Result

RUNS = 3
SIZES = (1_000, 5_000, 10_000)
EVENTS = 30
GAP = 0.4
"""Seconds between two events, counted from when everybody has the one before it if that takes longer."""
NAIVE_EVENTS = {1_000: EVENTS, 5_000: 10}
"""How many a naive server is given. One to 5,000 takes it up to half a second, so ten are enough: half a minute with
all who subscribe first; 10,000 would take a whole one and say nothing new."""
BASELINES = ("F", "nchan", "centrifugo", "mercure", "B0")

Found = dict[tuple[int, str], list[dict[str, Any]]]
"""Size and server → what the loader said in each run."""


def run(runs: int) -> Result:
    all_descriptors()
    everyone: dict[str, Opener] = {"F": floor, "cdrs": ours} | peers()
    rows: list[list[str]] = []
    found: Found = {}
    for number in range(runs):
        for size in SIZES:
            servers = everyone | ({"B0": naive} if size in NAIVE_EVENTS else {})
            for name, opened in servers.items():
                with opened() as server, loading(server, size) as loader:
                    said = measure(loader, NAIVE_EVENTS[size] if name == "B0" else EVENTS)
                found.setdefault((size, name), []).append(said)
                rows.append([str(number + 1), str(size), name, *cells(said)])
    return Result(
        ["run", "subscribers", "server", "CPU us/delivery", "of it at rest", "p50 ms", "p99 ms", "max ms", "MiB",
         "loader", *instructions.column(), "all"],
        rows,
        "; ".join(ratio(found, size) for size in SIZES),
        "; ".join(f"{size}: {others(found, size)}" for size in SIZES),
        "<= 1.5 x F and <= 0.75 x nchan",
        [f"{EVENTS} events {GAP:g} s apart, each stored with fsync before it is delivered; publishing is in the CPU",
         "'of it at rest': what the same server uses in that time with nothing published (heartbeats, registry, log)",
         "loader: the share of its core that it used; all: every delivery arrived, once and in order",
         instructions.note()],
        figures={name: figures(found, name) for name in (*everyone, "B0")},
    )  # fmt: skip


def measure(loader: Loader, events: int) -> dict[str, Any]:
    loader.publish(rate=5, seconds=1, one_by_one=True)  # warm
    idle = loader.idle(2)
    said = loader.publish(rate=1 / GAP, seconds=events * GAP, one_by_one=True)
    return said | {"idle": idle}


def cost(said: dict[str, Any]) -> float:
    """Microseconds of CPU for a delivery."""
    return float(said["cpu"] / said["deliveries"] * 1e6)


def cells(said: dict[str, Any]) -> list[str]:
    return [
        f"{cost(said):.2f}", f"{said['idle'] * said['took'] / said['deliveries'] * 1e6:.2f}",
        *(f"{said[key]:.0f}" for key in ("p50_ms", "p99_ms", "max_ms")), f"{said['rss_kib'] / 1024:.0f}",
        f"{said['loader_cpu'] / said['took']:.2f}", *instructions.cell(said), "yes" if sound(said) else "NO",
    ]  # fmt: skip


def middle(measured: list[dict[str, Any]]) -> float:
    return statistics.median(map(cost, measured))


def figures(found: Found, name: str) -> dict[str, float]:
    """Time, and where they are counted instructions, of a server's deliveries."""
    of: dict[str, float] = {}
    for size in SIZES:
        if measured := found.get((size, name)):
            of[f"us/delivery, {size}"] = middle(measured)
            if (counted := instructions.middle(measured)) is not None:
                of[f"instructions/delivery, {size}"] = counted
    return of


def others(found: Found, size: int) -> str:
    """The medians that ours are compared with."""
    return ", ".join(f"{name} {middle(found[size, name]):.2f} us" for name in BASELINES if (size, name) in found)


def ratio(found: Found, size: int) -> str:
    """Our medians against the others'."""
    mine = found[size, "cdrs"]
    text = f"{size}: {middle(mine):.2f} us, {middle(mine) / middle(found[size, 'F']):.2f} x F"
    if theirs := found.get((size, "nchan")):
        p99 = [statistics.median(said["p99_ms"] for said in of) for of in (mine, theirs)]
        text += f", {middle(mine) / middle(theirs):.2f} x nchan (p99 {p99[0] / p99[1]:.2f} x)"
    return text
