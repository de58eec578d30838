"""`cdrs log recover` on Kafka and MongoDB: a topic that is gone or was made anew, served on in a new epoch."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from cdrs_process import CdrsProcess, client, wait_until
from engine_nodes import engine_variables
from kafka_engine import kafka_url
from mongo_adapter import plain_database
from sse_socket import Subscriber, data_of
from write_paths import each_path

from shared.backends.kafka.address import parse_kafka_url
from shared.backends.kafka.admin import open_admin
from shared.partitioning import partition_of
from shared.settings import KafkaSettings

pytestmark = pytest.mark.timeout(240)


def post(cdrs: CdrsProcess, first: int, stop: int) -> list[dict[str, Any]]:
    lines = b"".join(b"%d\n" % number for number in range(first, stop))
    headers = {"content-type": "application/x-ndjson", "idempotency-key": f'"{first}-{stop}"'}
    answer = cdrs.request("POST", "/v1/streams/orders/events", lines, headers=headers)
    return [json.loads(line) for line in answer.body.splitlines()[:-1]]


async def topics(prefix: str) -> list[str]:
    async with open_admin(*parse_kafka_url(kafka_url(), KafkaSettings())) as admin:
        return sorted(name for name in await admin.topics() if name.startswith(prefix))


async def delete_topics(prefix: str) -> None:
    async with open_admin(*parse_kafka_url(kafka_url(), KafkaSettings())) as admin:
        for name in await topics(prefix):
            await admin.delete(name)
        async with asyncio.timeout(30):
            while any(name.startswith(prefix) for name in await admin.topics()):
                await asyncio.sleep(0.1)


def gaps_of(reader: Subscriber) -> list[dict[str, Any]]:
    return [json.loads(block.data) for block in reader.controls if block.event == b"cdrs.gap"]


@each_path
@pytest.mark.slow
async def test_a_deleted_topic_goes_on_in_a_new_epoch(tmp_path: Path) -> None:
    async with engine_variables() as env:
        prefix = env["CDRS_KAFKA__TOPIC"]
        database = plain_database(env)
        cdrs = CdrsProcess(tmp_path / "cdrs", env=env)
        with cdrs.start():
            kept = post(cdrs, 0, 100)
            wait_until(lambda: database.checkpoints.count_documents({"next": 100}), 30, "all in the store")
            refused = client(0, "log", "recover", env=env)
            assert (refused.code, "stop every node" in refused.text) == (1, True)
            cdrs.stop()
            await delete_topics(prefix)
            # Streams would be looked for in other partitions.
            homes = {n: partition_of("orders", None, "", partitions=n) for n in range(2, 48)}
            strange = env | {"CDRS_LOG__PARTITIONS": str(next(n for n, home in homes.items() if home != homes[2]))}
            refused = client(0, "log", "recover", env=strange)
            assert (refused.code, "set log.partitions" in refused.text) == (1, True), refused.text
            # A node makes a topic of its own, and refuses to serve beside a history that is not its.
            cdrs.start(wait=False)
            assert cdrs.wait(60) == 1
            assert "cdrs log recover" in cdrs.stderr()
            done = client(0, "log", "recover", env=env)
            assert (done.code, "100 events" in done.text) == (0, True), done.text
            assert len(await topics(prefix)) == 1
            cdrs.start(timeout=60)
            new = post(cdrs, 200, 210)
            assert [receipt["offset"] for receipt in new] == [str(offset) for offset in range(100, 110)]
            assert new[0]["epoch"] != kept[0]["epoch"]
            assert [receipt["duplicate"] for receipt in post(cdrs, 0, 100)] == [True] * 100
            assert [receipt["duplicate"] for receipt in post(cdrs, 200, 210)] == [True] * 10
            with Subscriber(cdrs.port, "orders", params={"from": kept[39]["cursor"]}) as reader:
                reader.wait_count(70, 30)
                assert [int(data_of(block.data)) for block in reader.blocks] == [*range(40, 100), *range(200, 210)]
                assert not gaps_of(reader)
            with Subscriber(cdrs.port, "orders", params={"from": "earliest"}) as reader:
                reader.wait_count(110, 30)
                assert not gaps_of(reader)
            info = cdrs.request("GET", "/v1/streams/orders").json()
            wait_until(lambda: cdrs.request("GET", "/v1/streams/orders").json()["events"] == 110, 20, str(info))
            wait_until(lambda: database.checkpoints.count_documents({"next": 110}), 30, "all in the store")
            cdrs.stop()
            # Once more, as after a restore: the topic is there, and so is everything.
            wait_until(lambda: client(0, "log", "recover", env=env).code == 0, 30, "the nodes are forgotten", every=1)
            assert len(await topics(prefix)) == 2
            cdrs.start(timeout=60)
            with Subscriber(cdrs.port, "orders", params={"from": new[4]["cursor"]}) as reader:
                post(cdrs, 300, 305)
                reader.wait_count(10, 30)
                assert [int(data_of(block.data)) for block in reader.blocks] == [*range(205, 210), *range(300, 305)]
                assert not gaps_of(reader)
            with Subscriber(cdrs.port, "orders", params={"from": kept[0]["cursor"]}) as reader:
                reader.wait_count(114, 30)
                assert not gaps_of(reader)
            # And made anew under its name, without a word to anybody.
            wait_until(lambda: database.checkpoints.count_documents({"next": 115}), 30, "all in the store")
            await made_anew((await topics(prefix))[-1])
            wait_until(lambda: "partitions" in checks(cdrs), 60, "it is noticed")
            cdrs.stop()
            done = client(0, "log", "recover", env=env)
            assert (done.code, "115 events" in done.text) == (0, True), done.text
            cdrs.start(timeout=60)
            with Subscriber(cdrs.port, "orders", params={"from": new[4]["cursor"]}) as reader:
                post(cdrs, 400, 403)
                reader.wait_count(13, 30)
                assert [int(data_of(block.data)) for block in reader.blocks][-4:] == [304, 400, 401, 402]
                assert not gaps_of(reader)


def checks(cdrs: CdrsProcess) -> dict[str, Any]:
    found: dict[str, Any] = cdrs.request("GET", "/readyz?verbose").json()["checks"]
    return found


async def made_anew(name: str) -> None:
    properties = {"min.insync.replicas": "2", "message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}
    await delete_topics(name)
    async with open_admin(*parse_kafka_url(kafka_url(), KafkaSettings())) as admin:
        await admin.create(name, partitions=2, replicas=3, properties={**properties, "max.message.bytes": "2097152"})
