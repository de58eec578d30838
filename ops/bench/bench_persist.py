"""Carrying records into MongoDB: documents, stream counts and checkpoint, all on a majority's journals, by two drivers;
against the same documents by ``insert_one``, one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from mongo_adapter import DATABASE, DRIVERS, Driver, empty, open_store, plain_client
from new_events import event
from pymongo.write_concern import WriteConcern
from report import Result

from shared.backends.mongo.documents import document_of, partition_key
from shared.backends.mongo.store import MongoStore
from shared.position import Epoch
from shared.records import FeedBatch, PageQuery, Record

RUNS = 1
BATCH = 4000
BATCHES = 4
PARTITIONS = 4
SINGLES = 150
STREAMS = 25
"""Streams in a batch: 300 over 12 partitions."""
PAYLOAD = b'{"text":"' + b"x" * 180 + b'"}'


def run(runs: int) -> Result:
    rows: list[Sequence[str]] = []
    best, single = 0.0, 0.0
    for _ in range(runs):
        for driver in DRIVERS:
            empty()
            alone, together, cpu, found, page = asyncio.run(measure(driver))
            single = max(single, insert_one())
            best = max(best, together)
            rows.append(
                [
                    driver,
                    f"{alone:,.0f}",
                    f"{together:,.0f}",
                    f"{cpu:.1f}",
                    f"{found:.1f}",
                    f"{page:,.0f}",
                    f"{single:,.0f}",
                ]
            )
    empty()
    return Result(
        ["driver", "1 partition, documents/s", f"{PARTITIONS} partitions, documents/s", "own CPU, us a document",
         "look-up of 1,000, ms", "pages, records/s", "insert_one/s"], rows,
        f"{best:,.0f} documents/s, {best / single:.0f} times insert_one",
        f"{single:,.0f} insert_one/s",
        ">= 12,000 documents/s, >= 25 times insert_one",
    )  # fmt: skip


def records(partition: int, start: int, stop: int) -> list[Record]:
    found: list[Record] = []
    for offset in range(start, stop):
        e = event(f"{partition}-{offset}", stream=f"p{partition}.s{offset % STREAMS}", data=PAYLOAD)
        found.append(
            Record(partition, offset, 1_700_000_000_000 + offset, e.identity, e.stream, None, e.value, e.data_at, 1, 0)
        )
    return found


async def measure(driver: Driver) -> tuple[float, float, float, float, float]:
    async with open_store(Epoch.create(), driver=driver, partitions=1 + PARTITIONS, timeout=20) as store:
        batches = {
            p: [FeedBatch(p, at, at + BATCH, records(p, at, at + BATCH)) for at in range(0, BATCHES * BATCH, BATCH)]
            for p in range(1 + PARTITIONS)
        }
        count = BATCHES * BATCH
        alone = count / await timed(carry(store, batches[0]))
        cpu = time.process_time()
        both = await timed(asyncio.gather(*[carry(store, batches[1 + p]) for p in range(PARTITIONS)]))
        cpu = (time.process_time() - cpu) / (count * PARTITIONS) * 1e6
        asked = [event(f"0-{n * 7}", stream="p0.s0", data=PAYLOAD) for n in range(1000)]
        found = min([await timed(store.lookup(0, asked)) for _ in range(3)]) * 1000
        page = count / min([await timed(store.page(PageQuery(0, 0, count, count, 2**40))) for _ in range(3)])
        return alone, count * PARTITIONS / both, cpu, found, page


async def carry(store: MongoStore, batches: Sequence[FeedBatch]) -> None:
    for batch in batches:
        await store.persist(batch)


async def timed(work: object) -> float:
    started = time.perf_counter()
    await work  # type: ignore[misc]
    return time.perf_counter() - started


def insert_one() -> float:
    collection = plain_client()[DATABASE].get_collection("events", write_concern=WriteConcern("majority", j=True))
    key = partition_key(Epoch(9, 9), 0)
    documents = [document_of(key, record) for record in records(0, 0, SINGLES)]
    started = time.perf_counter()
    for document in documents:
        collection.insert_one(document)
    return SINGLES / (time.perf_counter() - started)
