"""The append path of a node's Kafka adapter, against ``AIOKafkaProducer.send`` and ``gather`` on the same records."""

from __future__ import annotations

import asyncio
import statistics
import time

import uvloop
from aiokafka import AIOKafkaProducer
from kafka_engine import KafkaTopics, kafka_url
from kafka_records import BATCH, PARTITIONS, made
from report import Result

from shared.backends.kafka.client import BATCH_BYTES
from shared.backends.kafka.codec import encode
from shared.backends.kafka.log import KafkaLog
from shared.records import NewEvent

RUNS = 5
RECORDS = 48_000


def run(runs: int) -> Result:
    rows, ours, plain = uvloop.run(measure(runs))
    ratios = [mine / theirs for mine, theirs in zip(ours, plain, strict=True)]
    return Result(
        ["run", "producer", "records per CPU-second", "CPU us a record", "records/s"], rows,
        f"{statistics.median(ours):,.0f} records a second of CPU, {statistics.median(ratios):.1f} times the baseline "
        f"(median of {runs} pairs; {min(ratios):.1f} to {max(ratios):.1f})",
        f"{statistics.median(plain):,.0f}: aiokafka's send() of each record and gather(), headers made",
        ">= 2.5 times the records per CPU-second",
        [f"{RECORDS:,} events of about 300 bytes over {PARTITIONS} partitions in appends of {BATCH:,}",
         "both idempotent, acks=all, three brokers; CPU of this process alone",
         "ours includes making the headers; the baseline has them ready"],
    )  # fmt: skip


async def measure(runs: int) -> tuple[list[list[str]], list[float], list[float]]:
    topics = KafkaTopics(kafka_url())
    rows: list[list[str]] = []
    ours: list[float] = []
    plain: list[float] = []
    try:
        async with topics.open(partitions=PARTITIONS) as log:
            producer = AIOKafkaProducer(
                bootstrap_servers=kafka_url().removeprefix("kafka://"), acks="all", enable_idempotence=True,
                max_batch_size=BATCH_BYTES, linger_ms=2,
            )  # fmt: skip
            await producer.start()
            await append(log, made(PARTITIONS * BATCH))
            await send(log, producer, made(PARTITIONS * BATCH))
            for number in range(runs):
                events = made(RECORDS, f"{number}-")
                for name, work, found in (
                    ("send + gather", send(log, producer, events), plain), ("cdrs", append(log, events), ours),
                ):  # fmt: skip
                    cpu, wall = await work
                    found.append(RECORDS / cpu)
                    rows.append([
                        str(number + 1), name, f"{RECORDS / cpu:,.0f}", f"{cpu / RECORDS * 1e6:.2f}",
                        f"{RECORDS / wall:,.0f}",
                    ])  # fmt: skip
            await producer.stop()
    finally:
        await topics.remove()
    return rows, ours, plain


async def append(log: KafkaLog, events: list[NewEvent]) -> tuple[float, float]:
    share = len(events) // PARTITIONS

    async def one(partition: int) -> None:
        mine = events[partition * share : (partition + 1) * share]
        for at in range(0, share, BATCH):
            await log.append(partition, mine[at : at + BATCH], base=0)

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*[one(partition) for partition in range(PARTITIONS)])
    return time.process_time() - cpu, time.perf_counter() - wall


async def send(log: KafkaLog, producer: AIOKafkaProducer, events: list[NewEvent]) -> tuple[float, float]:
    records = encode(events, epoch=log.epoch, base=0, floor_ms=0)
    cpu, wall = time.process_time(), time.perf_counter()
    for at in range(0, len(records), BATCH * PARTITIONS):
        futures = [
            await producer.send(log.topic, one.value, key=one.key, partition=number % PARTITIONS, headers=one.headers)
            for number, one in enumerate(records[at : at + BATCH * PARTITIONS])
        ]
        await asyncio.gather(*futures)
    return time.process_time() - cpu, time.perf_counter() - wall
