"""Retention in a running system: what is deleted is told, to a reader that is in the middle of it too."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from cdrs_process import CdrsProcess, wait_until
from embedded_folder import opened
from engine_nodes import engine_variables
from mongo_adapter import plain_database
from new_events import events
from sse_socket import Block, Subscriber, data_of
from write_paths import each_path, portable_slow

from shared.backends.kafka.log import open_kafka_log
from shared.clock import SystemClock
from shared.errors import Gone
from shared.records import Expiry
from shared.settings import KafkaSettings, LogSettings

pytestmark = pytest.mark.timeout(120)

TOTAL = 300
WINDOW = 1024
MORE = 2500
"""So many that a topic is worth trimming."""
SMALL = {"CDRS_NODE__RING_RECORDS": "16", "CDRS_SSE__RING_RECORDS": "16", "CDRS_LOG__PARTITIONS": "1"}
JSON = {"accept": "application/json"}


def post(cdrs: CdrsProcess, first: int, stop: int, *, size: int = 0, ids: bool = False) -> list[dict[str, Any]]:
    lines = [json.dumps([number, "x" * size]).encode() for number in range(first, stop)]
    headers = {"content-type": "application/x-ndjson"}
    if ids:
        headers["idempotency-key"] = f'"{first}-{stop}"'
    answer = cdrs.request("POST", "/v1/streams/orders/events", b"\n".join(lines) + b"\n", headers=headers)
    return [json.loads(line) for line in answer.body.splitlines()[:-1]]


def number_of(block: Block) -> int:
    return int(json.loads(data_of(block.data))[0])


def floor_of(cdrs: CdrsProcess) -> int:
    db = apsw.Connection(str(cdrs.data / "log.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return int(db.execute("SELECT coalesce(max(floor), 0) FROM floors").get)
    finally:
        db.close()


def gaps_of(reader: Subscriber) -> list[dict[str, Any]]:
    found = [json.loads(block.data) for block in reader.controls if block.event == b"cdrs.gap"]
    return [{**gap, "resumes_at": ""} for gap in found]


def joined(gaps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gaps that follow each other as one: a reader that goes on step by step is told step by step."""
    found: list[dict[str, Any]] = []
    for gap in gaps:
        if found and found[-1]["to"] == gap["from"]:
            found[-1] = {**gap, "from": found[-1]["from"]}
        else:
            found.append(gap)
    return found


def retention(first: int, stop: int) -> dict[str, Any]:
    place = {"partition": 0, "from": str(first), "to": str(stop), "lost": None}
    return {"reason": "retention", **place, "resumes_at": ""}


async def test_a_tail_below_the_floor_is_told_where_to_go_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as (log, store), opened(tmp_path) as (other, _):
        await log.append(0, events(0, 100), base=0)
        while await store.expire(Expiry(1, 2**60, 0, 2**60)):
            pass
        await log.append(0, events(100, 110), base=0)
        tail = other.tail({0: 40})
        with pytest.raises(Gone) as caught:
            await tail.poll(max_records=100, timeout=5)
        assert caught.value.members == {"partition": 0, "start": 100}
        tail.seek(0, 100)
        (batch,) = await tail.poll(max_records=100, timeout=5)
        assert (batch.start, batch.next, len(batch.records)) == (100, 110, 10)
        await tail.close()


def the_floor_moves_under_its_readers(cdrs: CdrsProcess, floor: Callable[[], int]) -> list[dict[str, Any]]:
    """The receipts of what was deleted meanwhile."""
    go_on = threading.Event()
    slow = Subscriber(cdrs.port, "orders", params={"from": "earliest"}, on_block=lambda _: go_on.wait(60))
    with slow:
        receipts = post(cdrs, 0, TOTAL, size=60_000, ids=True)
        page = cdrs.request("GET", "/v1/streams/orders/events?limit=5", headers=JSON).json()
        assert [each["event"]["data"][0] for each in page["events"]] == list(range(5))
        wait_until(lambda: floor() == TOTAL, 60, "the floor")
        post(cdrs, TOTAL, TOTAL + 10)
        # A page that goes on where another one ended.
        rest = cdrs.request("GET", f"/v1/streams/orders/events?from={page['next']}", headers=JSON).json()
        assert joined([{**gap, "resumes_at": ""} for gap in rest["gaps"]]) == [retention(5, TOTAL)]
        assert [each["event"]["data"][0] for each in rest["events"]] == list(range(TOTAL, TOTAL + 10))
        # A reader in the middle of its history.
        go_on.set()
        slow.wait(lambda: number_of(slow.blocks[-1]) == TOTAL + 9, 60, "the last event")
        seen = [number_of(block) for block in slow.blocks]
        told = len(seen) - 10
        assert 0 < told < TOTAL
        assert seen == [*range(told), *range(TOTAL, TOTAL + 10)]
        assert joined(gaps_of(slow)) == [retention(told, TOTAL)]
    # A cursor of long ago; and copies of what is deleted.
    old = Subscriber(cdrs.port, "orders", params={"from": receipts[9]["cursor"]})
    with old:
        old.wait_count(10, 30)
        assert gaps_of(old) == [retention(10, TOTAL)]
    copies_are_known(cdrs, receipts)
    assert b'cdrs_sse_gaps_total{reason="retention"} 0.0' not in cdrs.request("GET", "/metrics").body
    return receipts


def copies_are_known(cdrs: CdrsProcess, receipts: list[dict[str, Any]]) -> None:
    again = post(cdrs, 0, TOTAL, size=60_000, ids=True)
    assert [receipt["duplicate"] for receipt in again] == [True] * TOTAL
    assert [receipt["offset"] for receipt in again] == [receipt["offset"] for receipt in receipts]
    assert cdrs.request("GET", f"/v1/streams/orders/events/{receipts[0]['id']}").status == 404


@each_path
def test_the_floor_moves_under_its_readers(tmp_path: Path) -> None:
    env = {**SMALL, "CDRS_RETENTION__MAX_AGE": "2", "CDRS_RETENTION__INTERVAL": "0.1"}
    with CdrsProcess(tmp_path / "cdrs", env=env).start() as cdrs:
        the_floor_moves_under_its_readers(cdrs, lambda: floor_of(cdrs))


@portable_slow
async def test_on_servers_it_does_too_and_the_topic_is_trimmed(tmp_path: Path) -> None:
    bounds = {"MAX_AGE": "5", "INTERVAL": "0.2"}
    async with engine_variables() as env:
        env |= {**SMALL, **{f"CDRS_RETENTION__{name}": value for name, value in bounds.items()}}
        env |= {"CDRS_NODE__WINDOW": str(WINDOW)}
        await asyncio.to_thread(on_servers, CdrsProcess(tmp_path / "cdrs", env=env), env)


def on_servers(cdrs: CdrsProcess, env: dict[str, str]) -> None:
    database = plain_database(env)

    def floor() -> int:
        return int((database.floors.find_one() or {}).get("next", 0))

    with cdrs.start(timeout=60):
        receipts = the_floor_moves_under_its_readers(cdrs, floor)
        for first in range(1000, 1000 + MORE, 500):
            post(cdrs, first, first + 500)
        end = TOTAL + 10 + MORE
        wait_until(lambda: floor() == end, 60, "the floor")
        wait_until(lambda: topic_start(env) > end - 2 * WINDOW, 30, "the topic's beginning")
        assert topic_start(env) <= end - WINDOW
        # What is left of the topic is enough to start on.
        cdrs.stop()
        cdrs.start(timeout=60)
        (new,) = post(cdrs, 5000, 5001)
        assert (new["offset"], new["duplicate"]) == (str(end), False)
        copies_are_known(cdrs, receipts)
        with Subscriber(cdrs.port, "orders", params={"from": receipts[9]["cursor"]}) as old:
            old.wait_count(1, 30)
            assert number_of(old.blocks[0]) == 5000
            assert joined(gaps_of(old)) == [retention(10, end)]
        stream = cdrs.request("GET", "/v1/streams/orders", headers=JSON).json()
        assert stream["events"] <= 1
        assert "made anew" not in cdrs.stderr()


def topic_start(env: dict[str, str]) -> int:
    async def ask() -> int:
        kafka = KafkaSettings(topic=env["CDRS_KAFKA__TOPIC"])
        async with open_kafka_log(env["CDRS_LOG__URL"], LogSettings(partitions=1), SystemClock(), kafka=kafka) as log:
            return (await log.starts())[0]

    return asyncio.run(ask())


@pytest.mark.slow
def test_a_bound_of_bytes_keeps_the_newest(tmp_path: Path) -> None:
    bound = 8 * 1024 * 1024
    env = {**SMALL, "CDRS_RETENTION__MAX_BYTES": str(bound), "CDRS_RETENTION__INTERVAL": "0.1"}
    with CdrsProcess(tmp_path / "cdrs", env=env).start() as cdrs:
        for first in range(0, 600, 100):
            post(cdrs, first, first + 100, size=60_000)
        wait_until(lambda: floor_of(cdrs) > 400, 30, "the floor")
        kept: list[int] = []

        def is_whole() -> bool:
            """The floor may still move under a page, which then says what it lacks."""
            page = cdrs.request("GET", "/v1/streams/orders/events?limit=1000", headers=JSON).json()
            kept[:] = [each["event"]["data"][0] for each in page["events"]]
            lacks = set(range(kept[0], kept[-1] + 1)) - set(kept)
            told = {offset for gap in page["gaps"] for offset in range(int(gap["from"]), int(gap["to"]))}
            assert lacks <= told, "a silent hole"
            return not lacks

        wait_until(is_whole, 30, "the floor to stand still")
        assert kept[0] > 400
        for first in range(600, 1200, 100):
            post(cdrs, first, first + 100, size=60_000)
        wait_until(lambda: floor_of(cdrs) > 1000, 30, "the floor")
        assert floor_of(cdrs) < 1150
        # Its pages are used again.
        assert (cdrs.data / "log.db").stat().st_size < 8 * bound
