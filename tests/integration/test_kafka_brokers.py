"""Brokers that die, stop and come back, under load. The engines are the test's own: it does them harm."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
from aiokafka import TopicPartition
from engine_set import EngineSet, expendable_set
from kafka_engine import KafkaTopics
from new_events import event

from cdrs.judgement import Judge, Kind
from shared.backends.kafka.address import parse_kafka_url
from shared.backends.kafka.admin import Admin, open_admin
from shared.backends.kafka.client import CLIENT_ERRORS, Connection
from shared.backends.kafka.codec import Outgoing
from shared.backends.kafka.log import KafkaLog
from shared.errors import CdrsError, OutcomeUnknown, Unavailable
from shared.records import Record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PARTITIONS = 6
PACE = 0.02


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineSet]:
    with expendable_set("kafka", tmp_path_factory.mktemp("kafka")) as brokers:
        yield brokers


class Load:
    """Appends to every partition without a break, and reads along."""

    def __init__(self, log: KafkaLog) -> None:
        self._log = log
        self.acknowledged: dict[int, list[bytes]] = {partition: [] for partition in range(PARTITIONS)}
        self.records: dict[int, list[Record]] = {partition: [] for partition in range(PARTITIONS)}
        self.errors: Counter[type[CdrsError]] = Counter()
        self.gaps = dict.fromkeys(range(PARTITIONS), 0.0)
        """Longest time between two acknowledgements, per partition."""
        self._is_over = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load in the meantime; afterwards everything is read to the end."""
        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(self._write(partition)) for partition in range(PARTITIONS)]
            reader = group.create_task(self._read())
            await self.progress(5)
            self.gaps = dict.fromkeys(self.gaps, 0.0)
            yield
            await self.progress(20)
            self._is_over = True
            await asyncio.gather(*writers)
            ends = await self._log.ends()
            await until(lambda: all(self._next(partition) >= ends[partition] for partition in ends))
            reader.cancel()

    async def progress(self, count: int) -> None:
        """Until every partition has so many more acknowledgements."""
        wanted = {partition: len(done) + count for partition, done in self.acknowledged.items()}
        await until(lambda: all(len(self.acknowledged[partition]) >= goal for partition, goal in wanted.items()))

    def _next(self, partition: int) -> int:
        records = self.records[partition]
        return records[-1].offset + 1 if records else 0

    async def _write(self, partition: int) -> None:
        number, last = 0, time.monotonic()
        while not self._is_over:
            one = event(f"{partition}-{number}")
            number += 1
            try:
                await self._log.append(partition, [one], base=self._next(partition))
            except CdrsError as error:
                self.errors[type(error)] += 1
            else:
                now = time.monotonic()
                self.gaps[partition] = max(self.gaps[partition], now - last)
                last = now
                self.acknowledged[partition].append(one.identity)
            await asyncio.sleep(PACE)

    async def _read(self) -> None:
        tail = self._log.tail(dict.fromkeys(range(PARTITIONS), 0))
        try:
            while True:
                for batch in await tail.poll(max_records=1000, timeout=1):
                    assert self._next(batch.partition) == batch.start
                    self.records[batch.partition] += batch.records
        finally:
            await tail.close()

    def check(self) -> int:
        """Nothing acknowledged is lost, nothing is visible twice, order is kept. Gives the number of copies."""
        copies = 0
        for partition, records in self.records.items():
            verdicts = Judge(32_768, start=0, whole=True).judge(records, upto=len(records))
            visible = [r.identity for r, v in zip(records, verdicts, strict=True) if v.kind is Kind.VISIBLE]
            copies += len(records) - len(visible)
            assert len(visible) == len(set(visible))
            place = {identity: at for at, identity in enumerate(visible)}
            places = [place[identity] for identity in self.acknowledged[partition]]
            assert places == sorted(places)
            stamps = [record.append_ms for record in records]
            assert stamps == sorted(stamps)
        return copies

    def __str__(self) -> str:
        acknowledged = sum(map(len, self.acknowledged.values()))
        return f"{acknowledged} acknowledged, longest gap {max(self.gaps.values()):.1f} s, errors {dict(self.errors)}"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(90):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.fixture
async def log(brokers: EngineSet) -> AsyncIterator[KafkaLog]:
    async with KafkaTopics(brokers.url("kafka")).open(partitions=PARTITIONS) as log:
        yield log


async def test_one_of_three_killed_is_a_pause_not_an_error(brokers: EngineSet, log: KafkaLog) -> None:
    load = Load(log)
    async with load.running():
        await brokers.run("kill", "kafka-2")
        await load.progress(20)
        assert await all_led_by_others(log, 2)
        await brokers.run("start", "kafka-2")
    print(f"SIGKILL of one broker: {load}, {load.check()} copies")
    assert not load.errors


async def test_one_of_three_stopped_for_ten_seconds(brokers: EngineSet, log: KafkaLog) -> None:
    load = Load(log)
    async with load.running():
        await brokers.run("pause", "kafka-3")
        await asyncio.sleep(10)
        await brokers.run("resume", "kafka-3")
    print(f"SIGSTOP of one broker for 10 s: {load}, {load.check()} copies")
    assert not load.errors


async def test_without_a_quorum_it_is_refused_and_heals(brokers: EngineSet, log: KafkaLog) -> None:
    load = Load(log)
    async with load.running():
        await brokers.run("kill", "kafka-1", "kafka-2")
        await until(lambda: load.errors[Unavailable] >= PARTITIONS)
        await brokers.run("start", "kafka-1", "kafka-2")
    print(f"two of three brokers down: {load}, {load.check()} copies")
    # the one that was under way may be stored; whatever came later certainly was not
    assert load.errors[OutcomeUnknown] == PARTITIONS


async def test_where_no_broker_answers_the_reader_is_given_up_and_made_again(
    brokers: EngineSet, log: KafkaLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Its client would try them all a hundred times a second, for as long as it takes."""
    load = Load(log)
    names = [f"kafka-{number}" for number in (1, 2, 3)]
    async with load.running():
        await brokers.run("kill", *names)
        await until(lambda: "is replaced: no broker answers" in caplog.text)
        await brokers.run("start", *names)
    print(f"no broker at all: {load}, {load.check()} copies")
    assert caplog.text.count("is replaced: no broker answers") == 1


async def test_what_can_be_trimmed_is_while_a_partition_has_no_leader(brokers: EngineSet) -> None:
    topics = KafkaTopics(brokers.url("kafka"))
    address, settings = parse_kafka_url(topics.url, topics.settings())
    connection = Connection(address, settings, f"{topics.prefix}.alone", partitions=3)
    producer, consumer = connection.producer(), connection.consumer()
    properties = {"min.insync.replicas": "1", "retention.ms": "-1"}  # the records are of 1970
    async with open_admin(address, settings) as admin:
        assert await admin.create(connection.topic, partitions=3, replicas=1, properties=properties)
        try:
            await producer.start()
            await consumer.start()
            for partition in range(3):
                await asyncio.wait_for(await producer.send(partition, [Outgoing(None, b"x", [])] * 10, 1), 10)
            assert set((await consumer.ends(10)).values()) == {10}
            known = consumer._consumer._client.cluster  # pyright: ignore[reportPrivateUsage]
            leader = int(known.leader_for_partition(TopicPartition(connection.topic, 1)))
            await brokers.run("kill", f"kafka-{leader}")
            try:
                await until_led(admin, connection.topic, wanted=False)  # until the cluster knows
                with pytest.raises(CLIENT_ERRORS):
                    await admin.trim(connection.topic, {0: 4, 1: 4, 2: 4})
            finally:
                await brokers.run("start", f"kafka-{leader}")
            await until_led(admin, connection.topic)
            assert await consumer.starts(30) == {0: 4, 1: 0, 2: 4}
            await admin.trim(connection.topic, {0: 4, 1: 4, 2: 4})
            assert await consumer.starts(30) == {0: 4, 1: 4, 2: 4}
        finally:
            await producer.stop()
            await consumer.stop()
            await admin.delete(connection.topic)


async def until_led(admin: Admin, topic: str, *, wanted: bool = True) -> None:
    """Until every partition has a leader, or one has none."""
    async with asyncio.timeout(60):
        while True:
            with suppress(*CLIENT_ERRORS):  # the broker that was asked may be the one that is down
                if (await admin.topics())[topic].has_leaders == wanted:
                    return
            await asyncio.sleep(0.1)


async def all_led_by_others(log: KafkaLog, broker: int) -> bool:
    async with asyncio.timeout(30):
        while log.leaders().get(broker, 0) or sum(log.leaders().values()) < PARTITIONS:
            await asyncio.sleep(0.1)
    return True
