"""Run one benchmark: ``python ops/bench/main.py NAME``; ``scripts/bench NAME`` calls it.

Each starts the servers that it measures, prints a table, and appends date, commit, baseline and figure to
``docs/performance.md`` under its own heading. Servers are pinned to core 0, loaders to core 1, where there are two.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "tests" / "support")]

NAMES = {
    "job": "the whole sample in by `cdrs pub` and out to a subscriber",
    "post": "single POSTs over 32 connections, against a plain handler with the same durability",
    "s6": "5,000 subscribers come back at once, 200 events behind, while 50 events/s go on",
    "s7": "POSTs of 200 bytes to a log that keeps nothing: one event each, and 100 as NDJSON, over 32 connections",
    "latency": "from POST to subscriber at 200 events/s and 100 subscribers",
    "idle": "an idle server, and 1,000 idle subscribers",
    "ready": "from the command to the first 200 of /readyz",
    "s1": "10,000 idle subscribers",
    "s2": "one stream to 1,000, 5,000 and 10,000 subscribers, against plain send() in C and nchan",
    "s3": "one stream to 1,000 subscribers, faster and faster",
    "s4": "10,000 subscribers of a private stream and a group each, while others come and go",
    "s5": "5,000 subscribers in gzip who come and go, 10 events of 222 bytes a second",
    "s10": "from POST through gateway, node and log to 1,000 subscribers at 200 events/s, all roles real",
    "hostile": "300 clients that read slowly, never, end, talk, pipeline and reset, beside 1,000 good ones",
    "compress": "libraries that deflate, on frames of orders and of real edits",
    "memory": "what is kept for a subscriber, a record in memory and a stream",
    "soak": "memory over half an hour (--minutes M) of events and of ten connects a second",
    "kills": "the longest time without a receipt after engines are killed, at 200 events/s through HAProxy",
    "overload": "three times the load that saturates: single POSTs, and batches of 100",
    "persist": "records into MongoDB on a majority's journals, against insert_one",
    "kafka_append": "records into Kafka through the node's adapter, against aiokafka's send and gather",
    "tail": "a node's tail of a Kafka topic: read, judge, ring, against reading alone",
    "engines_latency": "POST to receipt and to 100 subscribers, on Kafka, Hazelcast and MongoDB",
    "engines_job": "the whole sample in by `cdrs pub` and out to a subscriber, on Kafka, Hazelcast and MongoDB",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Benchmarks: " + "; ".join(f"{name}: {what}" for name, what in NAMES.items())
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME", choices=[*NAMES, "all", "compare"],
        help="or: all; compare [NAME...]: run them (those whose figures are kept), write nothing, exit 1 where a ratio "
        "to the baseline is worse than when last written",
    )  # fmt: skip
    parser.add_argument(
        "--peers", action="store_true", help="also nchan, from Debian's packages, and centrifugo and mercure on PATH"
    )
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--runs", type=int, default=0, help="repetitions; default: the benchmark's own")
    parser.add_argument(
        "--profile", action="store_true",
        help="sample our servers with py-spy into docs/bench/NAME.profile.txt; figures are then printed only, as "
        "sampling stops a server for moments",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, help="of the soak; default: 30")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.minutes:
        os.environ["CDRS_BENCH_MINUTES"] = str(options.minutes)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and so end the servers it started
    if options.peers:
        os.environ["CDRS_BENCH_PEERS"] = "1"
    report, comparing = importlib.import_module("report"), importlib.import_module("compare")
    is_compared = "compare" in options.names
    names = [name for name in options.names if name in NAMES]
    if "all" in options.names:
        names = [name for name in NAMES if name != "soak"]
    elif is_compared:
        names = names or [name for name in NAMES if report.last(name) is not None]
    worse: list[str] = []
    for name in names:
        bench = importlib.import_module(f"bench_{name}")
        runs = options.runs or bench.RUNS
        result = profiled(name, runs) if options.profile else bench.run(runs)
        report.show(name, NAMES[name], result)
        if is_compared:
            for line, is_worse in comparing.compared(name, report.kept(result), report.last(name)):
                print(line)
                worse += [line] if is_worse else []
        elif not (options.no_write or options.profile):
            report.append(name, NAMES[name], result)
            report.keep(name, NAMES[name], result)
    return 1 if worse else 0


def profiled(name: str, runs: int) -> Any:
    """Run a benchmark and write where its servers' time went."""
    sampling, report = importlib.import_module("sampling"), importlib.import_module("report")
    if not sampling.is_possible():
        print(sampling.MISSING, file=sys.stderr)
    sampling.begin()
    result = importlib.import_module(f"bench_{name}").run(runs)
    path = report.KEPT / f"{name}.profile.txt"
    if text := sampling.table(f"{name}: {NAMES[name]} ({report.today()}, {report.commit()})"):
        path.write_text(text)
        print(f"profile: docs/bench/{path.name}")
    return result


if __name__ == "__main__":
    sys.exit(main())
