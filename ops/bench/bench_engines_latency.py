"""Through HAProxy on the real engines at 200 events/s: single POSTs to their receipts, and from POST to 100
subscribers."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from aiokafka import AIOKafkaProducer
from bench_latency import load as fan
from cdrs_process import environment
from engines_rig import Rig, cpu_of, deployed, engines
from machine import HERE, percentile
from report import Result

from shared.backends.kafka.log import open_kafka_log
from shared.clock import SystemClock
from shared.settings import KafkaSettings, LogSettings

RUNS = 3
RATE = 200
SECONDS = 15
SUBSCRIBERS = 100
PROBES = 200
NODES = 3


def run(runs: int) -> Result:
    rows, posts, fans, floors = [], [], [], []
    for number in range(runs):
        with engines() as rig:
            floor = asyncio.run(bare(rig))
            floors.append(floor[0])
            rows.append([str(number + 1), "aiokafka, one record", f"{floor[0]:.1f}", f"{floor[1]:.1f}", "", ""])
            with deployed(rig, nodes=NODES) as cdrs:
                for what, found, work in (
                    ("POST to receipt", posts, lambda: paced(cdrs.port)),
                    (f"POST to {SUBSCRIBERS} subscribers", fans, lambda: fan(
                        cdrs.port, "/v1/streams/bench.latency/events", "/v1/streams/bench.latency/events"
                    )),
                ):  # fmt: skip
                    before, began = cpu_of(cdrs), time.monotonic()
                    said = work()
                    shares = {k: (v - before[k]) / (time.monotonic() - began) for k, v in cpu_of(cdrs).items()}
                    found.append(said)
                    rows.append([
                        str(number + 1), what, f"{said['p50_ms']:.1f}", f"{said['p99_ms']:.1f}",
                        f"{said['max_ms']:.1f}", ", ".join(f"{k} {v:.0%}" for k, v in shares.items()),
                    ])  # fmt: skip
    return Result(
        ["run", "what", "p50 ms", "p99 ms", "max ms", "CPU of a core"], rows,
        f"POST to receipt: p50 {middle(posts, 'p50_ms'):.1f} ms, p99 {middle(posts, 'p99_ms'):.1f} ms; POST to "
        f"{SUBSCRIBERS} subscribers: p50 {middle(fans, 'p50_ms'):.1f} ms, p99 {middle(fans, 'p99_ms'):.1f} ms "
        f"(medians of {runs})",
        f"{statistics.median(floors):.1f} ms (p50): aiokafka's send_and_wait of one record, acks=all, nothing else",
        "POST p50 <= 15 ms, p99 <= 80 ms; to 100 subscribers p50 <= 20 ms",
        [f"{RATE} events/s of 200 bytes for {SECONDS} s; HAProxy, two gateways, {NODES} nodes, replication factor 3",
         "POSTs counted from when they were due, over 64 connections and 16 streams; nothing is pinned"],
    )  # fmt: skip


def paced(port: int) -> dict[str, Any]:
    words = [port, RATE, SECONDS, "/v1/streams/bench.", "/events"]
    done = subprocess.run(
        [sys.executable, str(HERE / "pace_load.py"), *map(str, words)],
        env=environment(), capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["statuses"] == ["201"], said
    return said


async def bare(rig: Rig) -> tuple[float, float]:
    """p50 and p99 of one record at a time at the same rate, in ms."""
    url, topic = rig.environment["CDRS_LOG__URL"], rig.environment["CDRS_KAFKA__TOPIC"] + ".bare"
    times: list[float] = []
    async with open_kafka_log(url, LogSettings(), SystemClock(), kafka=KafkaSettings(topic=topic)) as log:
        producer = AIOKafkaProducer(bootstrap_servers=url.removeprefix("kafka://"), acks="all", enable_idempotence=True)
        await producer.start()
        try:
            for _ in range(PROBES):
                began = time.perf_counter()
                await producer.send_and_wait(log.topic, b"x" * 300)
                times.append((time.perf_counter() - began) * 1e3)
                await asyncio.sleep(1 / RATE)
        finally:
            await producer.stop()
    times.sort()
    return percentile(times, 0.5), percentile(times, 0.99)


def middle(said: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(one[name] for one in said))
