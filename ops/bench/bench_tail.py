"""A node's tail on a Kafka topic: read, decode, judge, ring; against aiokafka's ``getmany`` alone on the same
records."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping

import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition
from kafka_engine import KafkaTopics, kafka_url
from kafka_records import PARTITIONS, fill
from report import Result

from cdrs.tail import Tail
from shared.backends.kafka.log import KafkaLog
from shared.settings import NodeSettings

RUNS = 5
RECORDS = 120_000


def run(runs: int) -> Result:
    rows, ours, plain = uvloop.run(measure(runs))
    mine, theirs = statistics.median(ours), statistics.median(plain)
    return Result(
        ["run", "reader", "records per CPU-second", "CPU us a record", "records/s"], rows,
        f"{mine:,.0f} records a second of CPU (median of {runs}), {theirs / mine:.1f} times the CPU of reading alone",
        f"{theirs:,.0f}: aiokafka's getmany on the same records, headers parsed, nothing else done",
        ">= 150,000 records/s on one core",
        [f"{RECORDS:,} events of about 300 bytes in {PARTITIONS} partitions, three brokers; CPU of this process alone",
         "ours: decoded and checked (CRC, UTF-8, stream), judged, in the ring, observers called"],
    )  # fmt: skip


async def measure(runs: int) -> tuple[list[list[str]], list[float], list[float]]:
    topics = KafkaTopics(kafka_url())
    rows: list[list[str]] = []
    ours: list[float] = []
    plain: list[float] = []
    try:
        async with topics.open(partitions=PARTITIONS) as log:
            await fill(log, RECORDS)
            for number in range(runs):
                for name, reading, found in (("getmany", getmany(log), plain), ("cdrs", tail(log), ours)):
                    cpu, wall = await reading
                    found.append(RECORDS / cpu)
                    rows.append([
                        str(number + 1), name, f"{RECORDS / cpu:,.0f}", f"{cpu / RECORDS * 1e6:.2f}",
                        f"{RECORDS / wall:,.0f}",
                    ])  # fmt: skip
    finally:
        await topics.remove()
    return rows, ours, plain


class _NoStore:
    """So the tail begins at the log's beginning."""

    async def checkpoints(self) -> Mapping[int, int]:
        return {}


async def tail(log: KafkaLog) -> tuple[float, float]:
    node = Tail(log, _NoStore(), NodeSettings(), lambda *_: None)  # type: ignore[arg-type]
    cpu, wall = time.process_time(), time.perf_counter()
    reading = asyncio.create_task(node.run())
    await node.caught_up.wait()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    reading.cancel()
    await asyncio.wait({reading})
    assert sum(ring.next for ring in node.rings.values()) == RECORDS
    return cpu, wall


async def getmany(log: KafkaLog) -> tuple[float, float]:
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka_url().removeprefix("kafka://"), group_id=None)
    await consumer.start()
    partitions = [TopicPartition(log.topic, number) for number in range(PARTITIONS)]
    consumer.assign(partitions)
    await consumer.seek_to_beginning(*partitions)
    cpu, wall, got = time.process_time(), time.perf_counter(), 0
    while got < RECORDS:
        found = await consumer.getmany(timeout_ms=5000, max_records=2048)
        got += sum(map(len, found.values()))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    await consumer.stop()
    return cpu, wall
