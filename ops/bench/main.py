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


def main() -> int:
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
    parser.add_argument("--minutes", type=float, help="of the soak; default: 30")
    options = parser.parse_args()
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
        result = bench.run(options.runs or bench.RUNS)
        report.show(name, NAMES[name], result)
        if is_compared:
            for line, is_worse in comparing.compared(name, result.figures, report.last(name)):
                print(line)
                worse += [line] if is_worse else []
        elif not options.no_write:
            report.append(name, NAMES[name], result)
            report.keep(name, NAMES[name], result)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
