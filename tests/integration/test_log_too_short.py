"""A log that is not the one that was read and stored: the partition is not served any more, and it is said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from engine_nodes import PARTITIONS, TIMEOUT, EngineNode, EngineWorld, engine_world
from kafka_engine import kafka_url
from model_log import ModelLog, ModelStore, event
from model_log import events as model_events
from new_events import events
from node_world import read_feed, running_node, until

from cdrs.tail import SURE_AFTER
from shared.backends.kafka.address import parse_kafka_url
from shared.backends.kafka.admin import open_admin
from shared.backends.kafka.log import KafkaLog
from shared.errors import Gone, Unavailable
from shared.records import HistoryPage, PageQuery
from shared.settings import PersistSettings

pytestmark = pytest.mark.timeout(240)


async def test_a_log_that_ends_before_what_was_read_is_not_served() -> None:
    log = ModelLog(decides_identity=False)
    async with running_node(log) as node:
        await node.append(log.epoch, 0, model_events(range(20)), timeout=TIMEOUT)
        await node.append(log.epoch, 1, model_events(range(100, 103)), timeout=TIMEOUT)
        del log.records[0][5:]
        await until(lambda: "partitions" in node.troubles)
        assert "the log ends at 5, but 20 offsets were there" in node.troubles["partitions"]
        with pytest.raises(Unavailable, match="partition 0"):
            await node.append(log.epoch, 0, [event("new")], timeout=TIMEOUT)
        with pytest.raises(Unavailable, match="partition 0"):
            await node.page(PageQuery(0, 0, 5, 10, 2**20))
        # Cursors that were issued stay what they are.
        assert (await node.ends())[0] == 20
        # Even when the other log has become longer than the one that was read.
        for number in range(100):
            log.write(0, event(f"alien {number}"), base=len(log.records[0]))
        (settled,) = await node.append(log.epoch, 1, [event("new", stream="other")], timeout=TIMEOUT)
        assert settled.offset == 3
        assert node._tail.rings[0].next == 20
        assert "partitions" in (await node.info()).troubles


class BusyLog(ModelLog):
    """One that goes on, and is read, while it says where it ends."""

    read: Callable[[], int] | None = None

    async def ends(self) -> Mapping[int, int]:
        found = await super().ends()
        if self.read is not None:
            self.write(0, event(f"busy {found[0]}"), base=found[0])
            read = self.read
            await until(lambda: read() > found[0])
        return found


async def test_what_is_read_while_the_log_answers_is_not_too_much() -> None:
    log = BusyLog(decides_identity=False)
    async with running_node(log) as node:
        await node.append(log.epoch, 0, model_events(range(3)), timeout=TIMEOUT)
        log.read = lambda: node._tail.position(0)
        for _ in range(2 * SURE_AFTER):
            await node._tail.measure()
        log.read = None
        assert not node._tail.broken


async def test_looks_that_know_nothing_of_a_partition_do_not_speak_for_it() -> None:
    """A node that starts looks by the checkpoints, and beside it each second by what it has read: nothing as yet."""
    log = ModelLog(decides_identity=False)
    async with running_node(log) as node:
        tail = node._tail
        for _ in range(SURE_AFTER):
            tail._look_at_ends({0: 5}, {0: 10})
            tail._look_at_ends({0: 5}, {})
        assert "partition 0" in tail.broken[0]


async def test_a_log_that_shows_its_last_records_again_is_served_again() -> None:
    """As Kafka does when a new leader does not know yet that all have them."""
    log = ModelLog(decides_identity=False)
    async with running_node(log) as node:
        await node.append(log.epoch, 0, model_events(range(20)), timeout=TIMEOUT)
        late = log.records[0][15:]
        del log.records[0][15:]
        await until(lambda: "partitions" in node.troubles)
        assert 0 in (await node.info()).strained
        log.records[0] += late
        await until(lambda: "partitions" not in node.troubles)
        (again, new) = await node.append(log.epoch, 0, [*model_events(range(19, 20)), event("new")], timeout=TIMEOUT)
        assert (again.duplicate, again.offset, new.offset) == (True, 19, 20)
        assert await read_feed(node, log, 21) == [e.value for e in [*model_events(range(20)), event("new")]]


async def test_records_deleted_below_a_slow_tail_are_no_loss_where_the_store_has_them() -> None:
    log = ModelLog(decides_identity=False)
    store = ModelStore(log)
    async with running_node(log, store) as node:
        await node.append(log.epoch, 0, model_events(range(20)), timeout=TIMEOUT)
        log.tail_errors.append(Gone("deleted", partition=0, start=10))
        await node.append(log.epoch, 0, model_events(range(20, 30)), timeout=TIMEOUT)
        assert not node.troubles
        assert await read_feed(node, log, 30) == [e.value for e in model_events(range(30))]


async def test_records_deleted_before_they_were_stored_are_told() -> None:
    log = ModelLog(decides_identity=False)
    store = ModelStore(log, persisted={0: 5, 1: 0, 2: 0})
    for number in range(20):
        log.write(0, event(number), base=number)
    log.kept[0] = 10
    async with running_node(log, store) as node:
        seen: list[int] = []
        told: list[tuple[int, int]] = []
        async with asyncio.timeout(TIMEOUT), node.feed(log.epoch, {0: 0}) as feed:
            async for batch in feed:
                seen += [record.offset for record in batch.records]
                told += batch.deleted
                if batch.next >= 20:
                    break
        assert seen == [*range(5), *range(10, 20)]
        assert told == [(5, 10)]
        assert not node.troubles
        (settled,) = await node.append(log.epoch, 0, [event("new")], timeout=TIMEOUT)
        assert settled.offset == 20


class DatedModelLog(ModelLog):
    """`DatedLog`, whose stamps are the append times."""

    async def firsts(self) -> Mapping[int, tuple[int, int]]:
        kept = {p: records[self.kept.get(p, 0) :] for p, records in self.records.items()}
        return {p: (records[0].offset, records[0].append_ms) for p, records in kept.items() if records}


async def test_a_log_that_is_trimmed_and_shows_it_again_is_the_same_log() -> None:
    log = DatedModelLog(decides_identity=False)
    async with running_node(log) as node:
        await node.append(log.epoch, 0, model_events(range(20)), timeout=TIMEOUT)
        for kept in (0, 10, 4, 12):
            log.kept[0] = kept
            await node._tail.measure()
        assert not node.troubles
        # A broker whose clock is ahead stamped what it shows again.
        log.kept[0] = 4
        log.records[0][4] = msgspec.structs.replace(log.records[0][4], append_ms=5000)
        await node._tail.measure()
        assert not node.troubles
        log.kept[0] = 0
        log.records[0] = [msgspec.structs.replace(r, append_ms=r.append_ms + 5000) for r in log.records[0]]
        await node._tail.measure()
        assert "made anew" in node.troubles["partitions"]


async def delete_records(log: KafkaLog, partition: int, before: int) -> None:
    hosts = kafka_url().removeprefix("kafka://").split(",")
    admin = AIOKafkaAdminClient(bootstrap_servers=hosts)
    await admin.start()
    try:
        place = TopicPartition(log.topic, partition)
        await admin.delete_records({place: RecordsToDelete(before_offset=before)})
    finally:
        await admin.close()


async def stored(node: EngineNode, count: int) -> None:
    """The first records of partition 0 are in the store."""
    async with asyncio.timeout(30):
        while (await node.store.checkpoints())[0] < count:
            await asyncio.sleep(0.02)


async def test_records_deleted_of_kafka_are_told_or_read_of_the_store() -> None:
    async with engine_world() as world:
        async with world.node() as one:
            await one.append(0, events(0, 30))
            await stored(one, 30)
        async with world.node(preferred=False, persist=PersistSettings(takeover=600)) as two:
            await two.append(0, events(30, 50))
            await delete_records(two.log, 0, 40)
            async with world.node() as three:
                pages: list[HistoryPage] = []
                async with asyncio.timeout(TIMEOUT):
                    while not pages or pages[-1].next < 50:
                        at = pages[-1].next if pages else 0
                        pages.append(await three.node.page(PageQuery(0, at, 50, 100, 2**20)))
                        await asyncio.sleep(0.02)
                assert [r.offset for page in pages for r in page.records] == [*range(30), *range(40, 50)]
                assert [each for page in pages for each in page.deleted] == [(30, 40)]
                assert [each for page in pages for each in page.missing] == []
                assert [r.offset for r in await three.visible(0, "orders")] == [*range(30), *range(40, 50)]
                # What retention of our own would delete: the store has it.
                await stored(three, 50)
                await delete_records(three.log, 0, 50)
                (known, new) = await three.append(0, events(45, 46) + events(50, 51))
                assert (known.duplicate, known.offset, new.offset) == (True, 45, 50)
        async with world.node() as four:
            assert not four.node.troubles
            assert [r.offset for r in await four.visible(0)] == [*range(30), *range(40, 51)]
            (known,) = await four.append(0, events(20, 21))
            assert (known.duplicate, known.offset) == (True, 20)


async def made_anew(world: EngineWorld, name: str) -> None:
    """The topic is deleted and created again, under its own name."""
    properties = {
        "min.insync.replicas": "2",
        "message.timestamp.type": "LogAppendTime",
        "retention.ms": "-1",
        "max.message.bytes": "2097152",
    }
    async with open_admin(*parse_kafka_url(world.topics.url, world.topics.settings())) as admin:
        await admin.delete(name)
        async with asyncio.timeout(30):
            while name in await admin.topics():
                await asyncio.sleep(0.1)
        await admin.create(name, partitions=PARTITIONS, replicas=3, properties=properties)


async def test_a_topic_that_was_made_anew_is_noticed_at_the_start() -> None:
    async with engine_world() as world:
        async with world.node() as one:
            await one.append(0, events(0, 30))
            await stored(one, 30)
            name = one.log.topic
        await made_anew(world, name)
        async with world.node() as two:
            assert "the log ends at 0, but 30 offsets were there" in two.node.troubles["partitions"]
            with pytest.raises(Unavailable, match="new epoch"):
                await two.append(0, events(100, 101))
            assert (await two.node.ends())[0] == 30
            await two.append(1, events(200, 201))


async def test_a_topic_that_was_made_anew_and_has_outgrown_the_old_one_is_noticed() -> None:
    async with engine_world() as world, AsyncExitStack() as stack:
        one = await stack.enter_async_context(world.node())
        await one.append(0, events(0, 30))
        async with asyncio.timeout(30):
            while (await one.store.checkpoints())[0] < 30:
                await asyncio.sleep(0.02)
        await until(lambda: 0 in one.node._tail._firsts)
        await made_anew(world, one.log.topic)
        # Longer than it was before anybody has looked at it.
        async with world.topics.open("one", partitions=PARTITIONS) as other:
            async with asyncio.timeout(30):
                while (await other.ends())[0] < 40:
                    await other.append(0, events(500, 540), base=0)
        await until(lambda: "partitions" in one.node.troubles)
        assert "was deleted and made anew" in one.node.troubles["partitions"]
        with pytest.raises(Unavailable, match="new epoch"):
            await one.append(0, events(100, 101))
        async with world.node() as two:
            assert "was deleted and made anew" in two.node.troubles["partitions"]
            with pytest.raises(Unavailable, match="new epoch"):
                await two.append(0, events(100, 101))
            assert (await two.append(1, events(200, 201)))[0].offset >= 0
