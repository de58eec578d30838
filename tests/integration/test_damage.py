"""Documents vanish from MongoDB: readers are told which offsets, in streams and pages, and get all the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cdrs_process import CdrsProcess, wait_until
from engine_nodes import engine_variables
from mongo_adapter import plain_database
from pymongo.database import Database
from sse_socket import Subscriber, data_of
from write_paths import portable_slow

from shared.backends.mongo.documents import partition_key, position_key
from shared.position import Epoch

pytestmark = pytest.mark.timeout(240)

TOTAL = 200
LOST = [(10, 13), (40, 41)]


def lost_offsets() -> set[int]:
    return {offset for first, stop in LOST for offset in range(first, stop)}


def vanish(database: Database[dict[str, Any]], epoch: Epoch, partition: int) -> None:
    key = partition_key(epoch, partition)
    positions = [position_key(key, offset) for offset in sorted(lost_offsets())]
    done = database.events.delete_many({"_id": {"$in": positions}})
    assert done.deleted_count == len(positions)


def gaps_of(reader: Subscriber) -> list[dict[str, Any]]:
    return [json.loads(block.data) for block in reader.controls if block.event == b"cdrs.gap"]


@portable_slow
async def test_what_has_vanished_is_told(tmp_path: Path) -> None:
    async with engine_variables() as env:
        small = {"CDRS_NODE__RING_RECORDS": "16", "CDRS_SSE__RING_RECORDS": "16"}
        database = plain_database(env)
        with CdrsProcess(tmp_path / "cdrs", env={**env, **small}).start() as cdrs:
            lines = b"".join(b"%d\n" % number for number in range(TOTAL))
            kind = {"content-type": "application/x-ndjson"}
            answer = cdrs.request("POST", "/v1/streams/orders/events", lines, headers=kind)
            receipts = [json.loads(line) for line in answer.body.splitlines()[:-1]]
            assert [receipt["offset"] for receipt in receipts] == [str(number) for number in range(TOTAL)]
            wait_until(lambda: database.checkpoints.count_documents({"next": TOTAL}), 30, "all in the store")
            partition = receipts[0]["partition"]
            vanish(database, Epoch.parse(receipts[0]["epoch"]), partition)
            kept = [number for number in range(TOTAL) if number not in lost_offsets()]
            told = [
                {"reason": "damage", "partition": partition, "from": str(first), "to": str(stop), "lost": None}
                for first, stop in LOST
            ]
            path = "/v1/streams/orders/events?limit=1000"
            page = cdrs.request("GET", path, headers={"accept": "application/json"}).json()
            assert [each["event"]["data"] for each in page["events"]] == kept
            assert [{**gap, "resumes_at": ""} for gap in page["gaps"]] == [{**gap, "resumes_at": ""} for gap in told]
            assert page["gap"] == page["gaps"][0]
            assert page["at_end"]
            after = f"/v1/streams/orders/events?limit=1&from={page['gap']['resumes_at']}"
            (event,) = cdrs.request("GET", after, headers={"accept": "application/json"}).json()["events"]
            assert event["event"]["data"] == LOST[0][1]
            for streams, cuts in (("orders", ()), (">", ()), ("orders", (11, 20, 60))):
                with Subscriber(cdrs.port, streams, params={"from": "earliest"}, cut_at=cuts) as reader:
                    reader.wait_count(len(kept), 60)
                    assert [int(data_of(block.data)) for block in reader.blocks] == kept
                    found = [{**gap, "resumes_at": ""} for gap in gaps_of(reader)]
                    assert [gap for at, gap in enumerate(found) if gap not in found[:at]] == [
                        {**gap, "resumes_at": ""} for gap in told
                    ]
                    assert cuts or len(found) == len(told)
            metrics = cdrs.request("GET", "/metrics").body
            assert b'cdrs_sse_gaps_total{reason="damage"} 0.0' not in metrics
