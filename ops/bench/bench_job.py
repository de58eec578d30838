"""The whole sample in by `cdrs pub`, the clock stopped when the last event has reached a ``wiki.>`` subscriber."""

from __future__ import annotations

import gzip
import json
import sqlite3
import statistics
import subprocess
import time
from pathlib import Path

from cdrs_process import CdrsProcess, client_environment, command
from exactly_once import check_exactly_once
from machine import ALL_CPUS, cpu_seconds, folder, fsync_ms, our_server
from report import Result
from sample import Sample, load_sample
from sse_socket import Subscriber

RUNS = 5
PUB = ["--stream-from", "channel", "--prefix", "wiki.", "--key-from", "page", "--time-from", "time"]


def run(runs: int) -> Result:
    sample = load_sample()
    rows, rates, sending, floors = [], [], [], []
    with folder() as path:
        sync = fsync_ms(path)
    for number in range(runs):
        floor = floor_rate(sample)
        floors.append(floor)
        with our_server(cpus=ALL_CPUS) as cdrs:
            command_rate, first_rate, pub_rate, cpu = one(cdrs, sample)
        rates.append(command_rate)
        sending.append(first_rate)
        rows.append([
            str(number + 1), f"{command_rate:,.0f}", f"{first_rate:,.0f}", f"{pub_rate:,.0f}",
            f"{cpu / len(sample.lines) * 1e6:.1f}", f"{floor:,.0f}",
        ])  # fmt: skip
    whole, sent, floor = statistics.median(rates), statistics.median(sending), statistics.median(floors)
    return Result(
        ["run", "events/s from command", "from first event", "pub says", "server CPU us/event", "floor events/s"],
        rows,
        f"{sent:,.0f} events/s from the first event (median of {runs}); {whole:,.0f} counting the start of the command",
        f"{floor:,.0f} events/s: read, parse and INSERT the same lines into SQLite, a commit with fsync per 1,000",
        ">= 20,000 events/s",
        [
            f"{len(sample.lines):,} events, {sample.origin}; fdatasync {sync:.2f} ms",
            "every run checked: each event once, in order per stream, byte for byte",
            f"server, `pub` and subscriber share {len(ALL_CPUS)} cores, nothing pinned",
        ],
    )


def one(cdrs: CdrsProcess, sample: Sample) -> tuple[float, float, float, float]:
    total = len(sample.lines)
    with Subscriber(cdrs.port, "wiki.>") as everything:
        before = cpu_seconds(cdrs.pid)
        started = time.monotonic()
        with subprocess.Popen(
            [*command(), "pub", "--json", "--file", str(sample.path), *PUB], env=client_environment(cdrs.port),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        ) as pub:  # fmt: skip
            everything.wait_count(total, 120)
            cpu = cpu_seconds(cdrs.pid) - before
            assert pub.stdout is not None
            summary = json.loads(pub.stdout.read())["summary"]
        assert pub.returncode == 0
        assert (summary["stored"], summary["failed"]) == (total, 0), summary
        first, last = everything.blocks[0].at, everything.blocks[-1].at
        check_exactly_once(everything.blocks, sample.of(), "the subscriber")
    return total / (last - started), total / (last - first), total / summary["seconds"], cpu


def floor_rate(sample: Sample) -> float:
    """The storage without any of the rest."""
    with folder() as path:
        database = sqlite3.connect(path / "floor.db", isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, stream TEXT, page TEXT, body BLOB)")
        started = time.monotonic()
        waiting = []
        for line in read_lines(sample.path):
            fields = json.loads(line)
            waiting.append((fields["channel"], fields["page"], line))
            if len(waiting) == 1000:
                insert(database, waiting)
                waiting = []
        insert(database, waiting)
        rate = len(sample.lines) / (time.monotonic() - started)
        database.close()
        return rate


def insert(database: sqlite3.Connection, rows: list[tuple[str, str, bytes]]) -> None:
    database.execute("BEGIN IMMEDIATE")
    database.executemany("INSERT INTO events (stream, page, body) VALUES (?, ?, ?)", rows)
    database.execute("COMMIT")


def read_lines(path: Path) -> list[bytes]:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()
