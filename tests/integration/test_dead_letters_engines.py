"""Records in the topic that are not ours: every node skips them, and one letter tells of each."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import orjson
import pytest
from cdrs_process import CdrsProcess, wait_until
from engine_nodes import EngineNode, engine_variables, engine_world, stranger
from new_events import event, events
from node_world import read_feed
from prometheus_client.parser import text_string_to_metric_families

from cdrs.dead_letters import STREAM
from shared.backends.kafka.codec import HEADER, encode
from shared.partitioning import partition_of
from shared.position import Epoch
from shared.records import NewEvent

pytestmark = pytest.mark.timeout(120)


def header(sent: NewEvent, epoch: Epoch) -> bytes:
    return encode([sent], epoch=epoch, base=0, floor_ms=0)[0].headers[1][1]


def foreign_records(epoch: Epoch) -> list[tuple[str, bytes | None, list[tuple[str, bytes]]]]:
    """Cause, value and headers of what a stranger may write."""
    ours, not_utf8, not_json = event("a", data=b"[1]"), event("b", data=b'"\xff"'), event("c", data=b"{]")
    alien = Epoch(epoch.ordinal, epoch.random ^ 1)
    return [
        ("no-header", b"hello", []),
        ("bad-header", ours.value, [(HEADER, b"\x01")]),
        ("bad-header", None, [(HEADER, header(ours, epoch))]),
        ("other-epoch", ours.value, [(HEADER, header(ours, alien))]),
        ("not-utf8", not_utf8.value, [(HEADER, header(not_utf8, epoch))]),
        ("not-json", not_json.value, [(HEADER, header(not_json, epoch))]),
        ("no-header", bytes(range(256)) * 3600, []),
    ]


def counted(node: EngineNode) -> dict[str, float]:
    body, _ = node.telemetry.render()
    return {
        sample.labels["cause"]: sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == "cdrs_log_foreign_records_total" and sample.value
    }


async def letters_at(node: EngineNode) -> dict[str, tuple[str, bytes]]:
    """Id → cause and bytes, as history shows them."""
    home = partition_of(STREAM, None, "", partitions=node.log.partitions)
    found: dict[str, tuple[str, bytes]] = {}
    for record in await node.visible(home, STREAM):
        letter = orjson.loads(record.value)
        assert letter["id"] not in found, "a letter is visible twice"
        found[letter["id"]] = letter["cdrscause"], base64.b64decode(letter["data_base64"])
    return found


async def test_two_nodes_skip_and_count_and_leave_one_letter_for_each() -> None:
    async with engine_world() as world, stranger() as producer, world.node() as one, world.node(preferred=False) as two:
        epoch, strange = one.log.epoch, foreign_records(one.log.epoch)
        wanted: dict[str, tuple[str, bytes]] = {}
        sent: list[NewEvent] = []
        for number, (cause, value, headers) in enumerate(strange):
            mine = events(number * 10, number * 10 + 3)
            await one.append(0, mine)
            sent += mine
            told = await producer.send_and_wait(one.log.topic, value, key=b"k", partition=0, headers=headers)
            wanted[f"{epoch}-0-{told.offset}"] = cause, value or b""
        end = (await one.log.ends())[0]
        for node in (one, two):
            ours = [value for value in await read_feed(node.node, node.log, end) if STREAM.encode() not in value]
            assert ours == [each.value for each in sent]
        async with asyncio.timeout(30):
            while await letters_at(one) != wanted or await letters_at(two) != wanted:
                await asyncio.sleep(0.05)
            # the second node writes none, as they are there when its time has come
            while sum(each.node._letters._waiting_bytes for each in (one, two)):
                await asyncio.sleep(0.05)
        assert await letters_at(one) == await letters_at(two) == wanted
        causes = [cause for cause, _ in wanted.values()]
        expected = {cause: float(causes.count(cause)) for cause in causes}
        assert counted(one) == counted(two) == expected
        home = partition_of(STREAM, None, "", partitions=one.log.partitions)
        in_log = [record for record in await read_raw(one, home) if record == STREAM]
        assert len(in_log) == len(wanted)


async def read_raw(node: EngineNode, partition: int) -> list[str]:
    """The stream of every record of a partition, whatever its judgement."""
    end, found, at = (await node.log.ends())[partition], list[str](), 0
    tail = node.log.tail({partition: 0})
    while at < end:
        for batch in await tail.poll(max_records=1000, timeout=1):
            found += [record.stream for record in batch.records]
            at = batch.next
    await tail.close()
    return found


async def test_a_flood_does_not_stop_a_partition_nor_fill_the_log() -> None:
    async with engine_world() as world, stranger() as producer, world.node(dead_letters=1) as one:
        await one.append(0, events(0, 3))
        total = 20_000
        for first in range(0, total, 1000):
            batch = producer.create_batch()
            for number in range(first, first + 1000):
                assert batch.append(key=None, value=b"%d" % number, timestamp=None)
            await (await producer.send_batch(batch, one.log.topic, partition=0))
        await one.append(0, events(3, 6))
        values = await read_feed(one.node, one.log, total + 6)
        assert [value for value in values if STREAM.encode() not in value] == [each.value for each in events(0, 6)]
        async with asyncio.timeout(20):
            while not await letters_at(one):
                await asyncio.sleep(0.05)
        assert counted(one) == {"no-header": total}
        assert len(await letters_at(one)) < 100


async def test_clients_read_the_letters(tmp_path: Path) -> None:
    """The product as it is started: two nodes, a stranger, and a client who looks what was wrong."""
    async with engine_variables() as env, stranger() as producer:
        with CdrsProcess(tmp_path / "cdrs", ["--nodes", "2"], env=env).start() as cdrs:
            before = cdrs.publish("orders", b"1")
            assert before.status == 201, before
            epoch = before.json()["epoch"]
            told = await producer.send_and_wait(f"{env['CDRS_KAFKA__TOPIC']}.{epoch}", b"\xffhello", partition=0)

            def shown() -> list[dict[str, object]]:
                answer = cdrs.request("GET", f"/v1/streams/{STREAM}/events", headers={"accept": "application/json"})
                return [each["event"] for each in answer.json()["events"]] if answer.status == 200 else []

            (letter,) = wait_until(shown, 30, lambda: f"the letter\n{cdrs.stderr()[-3000:]}")
            assert letter["id"] == f"{epoch}-0-{told.offset}"
            assert letter["cdrscause"] == "no-header"
            assert base64.b64decode(letter["data_base64"]) == b"\xffhello"
            assert cdrs.publish("orders", b"2").status == 201
            refused = cdrs.publish(STREAM, b"3")
            assert refused.status == 400, refused
