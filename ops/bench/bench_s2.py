"""S2: one stream, one event of 200 bytes at a time, 1,000 to 10,000 subscribers: CPU of a delivery against C's."""

from __future__ import annotations

import statistics

from fan_out import Opener, all_descriptors, floor, loading, naive, ours, peers, sound
from report import Result

RUNS = 3
SIZES = (1_000, 5_000, 10_000)
EVENTS = 30
GAP = 0.4
"""Seconds between two events, counted from when everybody has the one before it if that takes longer."""
NAIVE_SIZES = (1_000,)
"""A naive server needs half a second for one event to 10,000; the smallest size says enough."""


def run(runs: int) -> Result:
    all_descriptors()
    everyone: dict[str, Opener] = {"F": floor, "cdrs": ours} | peers()
    rows: list[list[str]] = []
    cpu: dict[tuple[int, str], list[float]] = {}
    p99: dict[tuple[int, str], list[float]] = {}
    for number in range(runs):
        for size in SIZES:
            servers = everyone | ({"B0": naive} if size in NAIVE_SIZES else {})
            for name, opened in servers.items():
                with opened() as server, loading(server, size) as loader:
                    loader.publish(rate=5, seconds=1, one_by_one=True)  # warm
                    idle = loader.idle(2)
                    said = loader.publish(rate=1 / GAP, seconds=EVENTS * GAP, one_by_one=True)
                each = said["cpu"] / said["deliveries"] * 1e6
                at_rest = idle * said["took"] / said["deliveries"] * 1e6
                cpu.setdefault((size, name), []).append(each)
                p99.setdefault((size, name), []).append(said["p99_ms"])
                share = f"{said['loader_cpu'] / said['took']:.2f}"
                figures = [
                    f"{each:.2f}",
                    f"{at_rest:.2f}",
                    *(f"{said[key]:.0f}" for key in ("p50_ms", "p99_ms", "max_ms")),
                ]
                rows.append([str(number + 1), str(size), name, *figures, share, "yes" if sound(said) else "NO"])
    ratios = [ratio(cpu, p99, size) for size in SIZES]
    return Result(
        ["run", "subscribers", "server", "CPU us/delivery", "of it at rest", "p50 ms", "p99 ms", "max ms", "loader",
         "all"],
        rows,
        "; ".join(ratios),
        "; ".join(f"{size}: {others(cpu, size)}" for size in SIZES),
        "<= 1.5 x F and <= 0.75 x nchan",
        [f"{EVENTS} events {GAP:g} s apart, each stored with fsync before it is delivered; publishing is in the CPU",
         "'of it at rest': what the same server uses in that time with nothing published (heartbeats, registry, log)",
         "loader: the share of its core that it used; all: every delivery arrived, once and in order"],
        figures={name: {f"us/delivery, {size}": statistics.median(cpu[size, name])
                        for size in SIZES if (size, name) in cpu} for name in (*everyone, "B0")},
    )  # fmt: skip


def others(cpu: dict[tuple[int, str], list[float]], size: int) -> str:
    """The medians that ours are compared with."""
    known = [name for name in ("F", "nchan", "centrifugo", "mercure", "B0") if (size, name) in cpu]
    return ", ".join(f"{name} {statistics.median(cpu[size, name]):.2f} us" for name in known)


def ratio(cpu: dict[tuple[int, str], list[float]], p99: dict[tuple[int, str], list[float]], size: int) -> str:
    """Our medians against the others'."""
    mine = statistics.median(cpu[size, "cdrs"])
    text = f"{size}: {mine:.2f} us, {mine / statistics.median(cpu[size, 'F']):.2f} x F"
    if (size, "nchan") in cpu:
        text += f", {mine / statistics.median(cpu[size, 'nchan']):.2f} x nchan"
        text += f" (p99 {statistics.median(p99[size, 'cdrs']) / statistics.median(p99[size, 'nchan']):.2f} x)"
    return text
