"""What others write straight into the topic: skipped, told, and never in the way. And what others read from it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from engine_set import ROOT
from kafka_engine import KafkaTopics, kafka_url
from new_events import as_sent, event, events

from shared.backends.kafka.address import parse_kafka_url
from shared.backends.kafka.admin import open_admin
from shared.backends.kafka.codec import HEADER, Cause, encode
from shared.backends.kafka.hooks import KafkaHooks
from shared.backends.kafka.log import KafkaLog
from shared.backends.kafka.tail import KafkaTail
from shared.errors import Gone
from shared.position import Epoch
from shared.records import LogBatch, NewEvent, Record
from shared.settings import KafkaSettings


@pytest.fixture
async def topics() -> AsyncIterator[KafkaTopics]:
    topics = KafkaTopics(kafka_url())
    yield topics
    await topics.remove()


@pytest.fixture
async def stranger() -> AsyncIterator[AIOKafkaProducer]:
    """A producer that is not ours."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka_url().removeprefix("kafka://").split(","), acks="all")
    await producer.start()
    yield producer
    await producer.stop()


class Skipped:
    """What the adapter tells of records that are not ours."""

    def __init__(self) -> None:
        self.foreign: list[tuple[int, int, Cause, bytes]] = []
        self.counts: Counter[Cause] = Counter()
        self.hooks = KafkaHooks(foreign=self._foreign, skipped=self._skipped)

    def _foreign(self, partition: int, offset: int, cause: Cause, raw: bytes) -> None:
        self.foreign.append((partition, offset, cause, raw))

    def _skipped(self, cause: Cause, count: int) -> None:
        self.counts[cause] += count


async def read_on(log: KafkaLog, *, start: int = 0, max_records: int = 1000) -> tuple[list[Record], list[LogBatch]]:
    """Partition 0 from here to its end; the batches cover everything."""
    end = (await log.ends())[0]
    tail = log.tail({0: start})
    batches: list[LogBatch] = []
    async with asyncio.timeout(30):
        while start < end:
            for batch in await tail.poll(max_records=max_records, timeout=1):
                assert batch.start == start
                start = batch.next
                batches.append(batch)
    await tail.close()
    return [record for batch in batches for record in batch.records], batches


def header(*sent: NewEvent, epoch: Epoch) -> bytes:
    return encode(sent, epoch=epoch, base=0, floor_ms=0)[0].headers[1][1]


async def test_records_that_are_not_ours_are_skipped_and_told(topics: KafkaTopics, stranger: AIOKafkaProducer) -> None:
    skipped = Skipped()
    async with topics.open(partitions=1, hooks=skipped.hooks) as log:
        ours = event("a", data=b"[1]")
        good = header(ours, epoch=log.epoch)
        not_utf8, not_json = event("b", data=b'"\xff"'), event("c", data=b"{]")
        alien = Epoch(log.epoch.ordinal, log.epoch.random ^ 1)
        written: list[tuple[bytes | None, list[tuple[str, bytes]], Cause]] = [
            (b"hello", [], Cause.NO_HEADER),
            (b'{"id":"x"}', [("content-type", b"application/cloudevents+json")], Cause.NO_HEADER),
            (ours.value, [(HEADER, b"\x01")], Cause.BAD_HEADER),
            (b'{"id":"x"}', [(HEADER, good)], Cause.BAD_HEADER),
            (None, [(HEADER, good)], Cause.BAD_HEADER),
            (ours.value, [(HEADER, header(ours, epoch=alien))], Cause.OTHER_EPOCH),
            (not_utf8.value, [(HEADER, header(not_utf8, epoch=log.epoch))], Cause.NOT_UTF8),
            (not_json.value, [(HEADER, header(not_json, epoch=log.epoch))], Cause.NOT_JSON),
            (b"x" * 900_000, [], Cause.NO_HEADER),
        ]
        sent: list[NewEvent] = []
        for number, (value, headers, _) in enumerate(written):
            mine = events(number * 10, number * 10 + 3)
            await log.append(0, mine, base=0)
            sent += mine
            await stranger.send_and_wait(log.topic, value, key=b"k", partition=0, headers=headers)
        records, _ = await read_on(log)
        assert [as_sent(record).value for record in records] == [each.value for each in sent]
        causes = [cause for *_, cause in written]
        assert [(p, cause, raw) for p, _, cause, raw in skipped.foreign] == [
            (0, cause, value or b"") for value, _, cause in written
        ]
        assert [offset for _, offset, _, _ in skipped.foreign] == [3 + 4 * number for number in range(len(written))]
        assert skipped.counts == Counter(causes)


async def test_too_large_is_skipped(topics: KafkaTopics, stranger: AIOKafkaProducer) -> None:
    skipped = Skipped()
    async with topics.open(partitions=1, hooks=skipped.hooks) as log:
        large = event("large", data=b'"' + b"x" * 2_000_000 + b'"')
        entries = await log.append(0, [event("a"), large, event("b")], base=0)
        assert [record.offset for record in (await read_on(log))[0]] == entries
    name = f"{topics.prefix}.two.1-00000005"
    async with open_admin(*parse_kafka_url(topics.url, KafkaSettings())) as admin:
        properties = {
            "min.insync.replicas": "2",
            "message.timestamp.type": "LogAppendTime",
            "retention.ms": "-1",
            "max.message.bytes": "8000000",
        }
        await admin.create(name, partitions=1, replicas=3, properties=properties)
    async with topics.open("two", hooks=skipped.hooks) as log:
        large = event("large", data=b'"' + b"x" * 3_000_000 + b'"')
        producer = AIOKafkaProducer(bootstrap_servers=stranger.client._bootstrap_servers, max_request_size=8_000_000)
        await producer.start()
        await producer.send_and_wait(
            log.topic, large.value, partition=0, headers=[(HEADER, header(large, epoch=log.epoch))]
        )
        await producer.stop()
        await log.append(0, [event("a")], base=0)
        records, _ = await read_on(log)
        assert [record.offset for record in records] == [1]
        assert skipped.counts == {Cause.TOO_LARGE: 1}


def _break_a_name(producer: AIOKafkaProducer) -> Any:
    """A batch of six in which the fourth has a header whose name is not UTF-8. No client makes one willingly."""
    batch = producer.create_batch()
    for number in range(6):
        name = "NAMENAME" if number == 3 else "name"
        batch.append(key=None, value=b"%d" % number, timestamp=1, headers=[(name, b"")])
    batch.close()
    original = batch._build

    def build() -> bytearray:
        data = original()
        at = data.find(b"NAMENAME")
        if at >= 0:
            data[at : at + 8] = b"\xff" * 8
            from aiokafka.record._crc32c import crc as crc32c  # noqa: PLC0415

            data[17:21] = crc32c(bytes(data[21:])).to_bytes(4, "big")
        return data

    batch._build = build
    return batch


@pytest.mark.parametrize("max_records", [1000, 2])
async def test_a_record_that_the_client_cannot_parse_does_not_stop_the_partition(
    topics: KafkaTopics, stranger: AIOKafkaProducer, max_records: int
) -> None:
    skipped = Skipped()
    async with topics.open(partitions=2, hooks=skipped.hooks) as log:
        await log.append(0, events(0, 3), base=0)
        await (await stranger.send_batch(_break_a_name(stranger), log.topic, partition=0))
        await log.append(0, events(3, 6), base=0)
        await log.append(1, events(6, 9), base=0)
        for start in (0, 4, 6, 7):
            skipped.foreign.clear()
            records, _ = await read_on(log, start=start, max_records=max_records)
            assert [record.offset for record in records] == [each for each in (0, 1, 2, 9, 10, 11) if each >= start]
            assert [(offset, cause) for _, offset, cause, _ in skipped.foreign] == [
                (offset, Cause.NO_HEADER if offset < 6 else Cause.UNREADABLE) for offset in range(max(start, 3), 9)
            ]


async def test_a_transaction_leaves_a_hole_that_is_covered(topics: KafkaTopics) -> None:
    async with topics.open(partitions=1) as log:
        producer = AIOKafkaProducer(
            bootstrap_servers=topics.url.removeprefix("kafka://").split(","), transactional_id=topics.prefix
        )
        await producer.start()
        await log.append(0, events(0, 2), base=0)
        async with producer.transaction():
            await producer.send_and_wait(log.topic, b"foreign", partition=0)
        await until_end(log, 4)  # the mark of the transaction comes a little later
        await log.append(0, events(2, 4), base=0)
        records, _ = await read_on(log)
        assert [record.offset for record in records] == [0, 1, 4, 5]
        # and with nothing behind the transaction's mark, which is no record
        async with producer.transaction():
            await producer.send_and_wait(log.topic, b"foreign", partition=0)
        await producer.stop()
        await until_end(log, 8)
        records, batches = await read_on(log)
        assert batches[-1].next == 8


async def test_below_the_start_the_tail_says_so(topics: KafkaTopics, tmp_path: Path) -> None:
    async with topics.open(partitions=2) as log:
        await log.append(0, events(0, 20), base=0)
        await log.append(1, events(20, 22), base=0)
        script = json.dumps({"partitions": [{"topic": log.topic, "partition": 0, "offset": 12}], "version": 1})
        file = tmp_path / "delete.json"
        file.write_text(script, encoding="utf-8")
        await java(
            "org.apache.kafka.tools.DeleteRecordsCommand",
            "--bootstrap-server", topics.url.removeprefix("kafka://"), "--offset-json-file", str(file),
        )  # fmt: skip
        assert await log.starts() == {0: 12, 1: 0}
        tail = log.tail({0: 5, 1: 0})
        with pytest.raises(Gone) as error:
            await follow(tail)
        assert error.value.members == {"partition": 0, "start": 12}
        tail.seek(0, 12)
        found: list[int] = []
        async with asyncio.timeout(20):
            while len(found) < 8:
                for batch in await tail.poll(max_records=100, timeout=1):
                    if batch.partition == 0:
                        found += [record.offset for record in batch.records]
        assert found == list(range(12, 20))


async def test_kafkas_own_consumer_reads_cloudevents(topics: KafkaTopics) -> None:
    sent = [event("a", key="k1", data='{"user": "Ü"}'.encode()), event("b", stream="wiki.de", data=b"[1, 2.50]")]
    async with topics.open(partitions=1) as log:
        await log.append(0, sent, base=0)
        output = await java(
            "org.apache.kafka.tools.consumer.ConsoleConsumer",
            "--bootstrap-server", topics.url.removeprefix("kafka://"), "--topic", log.topic, "--from-beginning",
            "--max-messages", "2", "--timeout-ms", "30000",
            "--formatter-property", "print.key=true", "--formatter-property", "print.headers=true",
            "--formatter-property", "key.separator=|", "--formatter-property", "headers.separator=;",
            "--formatter-property", "print.timestamp=true",
        )  # fmt: skip
    _, *found = output.split(b"LogAppendTime:")
    assert len(found) == 2
    for record, one in zip(found, sent, strict=True):
        # between them our own header, which is binary
        before, _, value = record.rpartition(f"|{one.key or 'null'}|".encode())
        assert b"content-type:application/cloudevents+json" in before
        assert value.rstrip(b"\n") == one.value
        read = json.loads(value)
        assert (read["specversion"], read["cdrsstream"]) == ("1.0", one.stream)


async def until_end(log: KafkaLog, end: int) -> None:
    async with asyncio.timeout(20):
        while (await log.ends())[0] < end:
            await asyncio.sleep(0.01)


async def follow(tail: KafkaTail) -> None:
    async with asyncio.timeout(20):
        while True:
            await tail.poll(max_records=10, timeout=1)


async def java(name: str, *arguments: str) -> bytes:
    """Run one of Kafka's own programs."""
    process = await asyncio.create_subprocess_exec(
        ROOT / "scripts/engines", "java", name, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, errors.decode()[-2000:]
    return output
