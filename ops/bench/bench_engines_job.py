"""The whole sample in by `cdrs pub` and out to a ``wiki.>`` subscriber, over Kafka, Hazelcast and MongoDB."""

from __future__ import annotations

import json
import statistics
import subprocess
import time

from bench_job import PUB, floor_rate
from cdrs_process import CdrsProcess, client_environment, command, wait_until
from engines_rig import Rig, cpu_of, engines, our_processes
from exactly_once import check_exactly_once
from report import Result
from sample import Sample, load_sample
from sse_socket import Subscriber

RUNS = 3
WARM = 50
LAYOUTS = {"gateway + 1 node": ("--nodes", "1"), "gateway + 3 nodes": ("--nodes", "3")}


def run(runs: int) -> Result:
    sample = load_sample()
    total = len(sample.lines)
    rows, rates, lags, floors = [], [], [], []
    for number in range(runs):
        floor = floor_rate(sample)
        floors.append(floor)
        for layout, args in LAYOUTS.items():
            with engines() as rig, our_processes(rig, *args) as cdrs:
                first_rate, pub_rate, behind, cpu = one(rig, cdrs, sample)
            rates.append(first_rate)
            lags.append(behind)
            per_event = ", ".join(f"{role} {seconds / total * 1e6:.0f}" for role, seconds in cpu.items())
            rows.append([
                str(number + 1), layout, f"{first_rate:,.0f}", f"{pub_rate:,.0f}", f"{behind:.1f}", per_event,
                f"{floor:,.0f}",
            ])  # fmt: skip
    by_layout = [statistics.median(rates[at :: len(LAYOUTS)]) for at in range(len(LAYOUTS))]
    said = "; ".join(f"{name}: {rate:,.0f} events/s" for name, rate in zip(LAYOUTS, by_layout, strict=True))
    return Result(
        ["run", "processes", "events/s from first event", "pub says", "persisted, s later", "CPU us/event", "floor"],
        rows,
        f"{said} from the first event (medians of {runs}); all persisted at most {max(lags):.1f} s after the last one",
        f"{statistics.median(floors):,.0f} events/s: the same lines into SQLite, a commit with fsync per 1,000",
        ">= 10,000 events/s to the last subscriber, persist lag 0 within 5 s",
        [
            f"{total:,} events, {sample.origin}; nine engine processes, ours, `pub` and the subscriber share the cores",
            "every run checked: each event once, in order per stream, byte for byte",
        ],
    )


def one(rig: Rig, cdrs: CdrsProcess, sample: Sample) -> tuple[float, float, float, dict[str, float]]:
    total = len(sample.lines)
    with Subscriber(cdrs.port, "wiki.>") as everything:
        before = cpu_of(cdrs)
        with subprocess.Popen(
            [*command(), "pub", "--json", "--file", str(sample.path), *PUB], env=client_environment(cdrs.port),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        ) as pub:  # fmt: skip
            everything.wait_count(total, 120)
            delivered = time.monotonic()
            wait_until(lambda: rig.carried() >= total + WARM, 60, "the store to have everything", every=0.1)
            behind = time.monotonic() - delivered
            cpu = {role: seconds - before[role] for role, seconds in cpu_of(cdrs).items()}
            assert pub.stdout is not None
            summary = json.loads(pub.stdout.read())["summary"]
        assert pub.returncode == 0
        assert (summary["stored"], summary["failed"]) == (total, 0), summary
        first, last = everything.blocks[0].at, everything.blocks[-1].at
        check_exactly_once(everything.blocks, sample.of(), "the subscriber")
    return total / (last - first), total / summary["seconds"], behind, cpu
