"""S1: 10,000 idle subscribers, a cursor block each 15 s: memory and CPU of each."""

from __future__ import annotations

import statistics

from fan_out import Opener, Server, all_descriptors, floor, loading, naive, ours, peers
from report import Result

RUNS = 1
SUBSCRIBERS = 10_000
SECONDS = 30
"""Two heartbeats of everybody."""


def run(runs: int) -> Result:
    all_descriptors()
    servers: dict[str, Opener] = {"cdrs": ours}
    servers["portable"] = lambda: ours("portable", name="portable")
    servers |= peers() | {"B0": naive, "F": floor}
    rows: list[list[str]] = []
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    for number in range(runs):
        for name, opened in servers.items():
            with opened() as server:
                kib, cpu, seconds, load = measure(server)
                mib = server.rss() / 1024
            found[name].append((kib, cpu))
            rows.append([
                str(number + 1), name, f"{kib:.2f}", f"{cpu:.2f}", f"{seconds:.1f}", f"{mib:.0f}", f"{load:.3f}",
            ])  # fmt: skip
    middle = {
        name: (statistics.median(each[0] for each in one), statistics.median(each[1] for each in one))
        for name, one in found.items()
    }
    others = "; ".join(f"{name} {kib:.1f} KiB, {cpu:.2f} us/s" for name, (kib, cpu) in middle.items() if name != "cdrs")
    return Result(
        ["run", "server", "KiB each", "CPU us/s each", "open all, s", "MiB", "loader"], rows,
        f"{middle['cdrs'][0]:.2f} KiB and {middle['cdrs'][1]:.2f} us of CPU a second for each idle subscriber",
        others,
        "<= 4 KiB and <= 0.6 us/s each",
        [f"{SUBSCRIBERS} subscribers of one quiet stream; CPU over {SECONDS} s, less the server's own",
         "resident memory of the server's process; the kernel's part of a socket (about 5 KiB) is not in it",
         "F sends no heartbeat; loader: the share of its core that it used"],
        figures={name: {"KiB each": kib, "us/s each": cpu} for name, (kib, cpu) in middle.items() if name != "F"},
    )  # fmt: skip


def measure(server: Server) -> tuple[float, float, float, float]:
    """KiB and us/s for each subscriber, the time to open them all, and the loader's own share of a core at rest."""
    with loading(server, 10) as few:
        alone, rss = few.idle(SECONDS / 2), server.rss()
    with loading(server, SUBSCRIBERS) as loader:
        opened = float(loader.opened["seconds"])
        loader.idle(2)
        before = loader.cpu()
        used = loader.idle(SECONDS) - alone
        load = (loader.cpu() - before) / SECONDS
        kib = (server.rss() - rss) / SUBSCRIBERS
    return kib, used * 1e6 / SUBSCRIBERS, opened, load
