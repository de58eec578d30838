"""Appending to Kafka when the producer is in trouble: poisoned, hanging, or its caller gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import TopicPartition
from kafka_engine import KafkaTopics, kafka_url
from new_events import event, events, read, same

from shared.backends.kafka.hooks import KafkaHooks
from shared.backends.kafka.log import KafkaLog
from shared.backends.kafka.producing import Producers
from shared.errors import OutcomeUnknown, Unavailable


@pytest.fixture
async def topics() -> AsyncIterator[KafkaTopics]:
    topics = KafkaTopics(kafka_url())
    yield topics
    await topics.remove()


def producers_of(log: KafkaLog) -> Producers:
    return log._writers[0]._producers


def aiokafka_of(log: KafkaLog) -> Any:
    """aiokafka's producer that is used at the moment."""
    current = producers_of(log)._current
    assert current is not None
    return current._client._producer


def poison(log: KafkaLog, partition: int) -> None:
    """What aiokafka does itself when a batch expires while the leader is unknown: a sequence number is burnt."""
    aiokafka_of(log)._txn_manager.increment_sequence_number(TopicPartition(log.topic, partition), 1)


def hang(log: KafkaLog, partition: int) -> None:
    """What looks the same as a request that never ends: the partition's batches are not sent."""
    aiokafka_of(log)._sender._muted_partitions.add(TopicPartition(log.topic, partition))


async def test_a_poisoned_producer_is_replaced_and_nobody_notices(topics: KafkaTopics) -> None:
    replaced: list[tuple[str, str]] = []
    hooks = KafkaHooks(replaced=lambda *what: replaced.append(what))
    async with topics.open(partitions=2, hooks=hooks) as log:
        await asyncio.gather(*[log.append(partition, events(0, 5), base=0) for partition in (0, 1)])
        poison(log, 0)
        await asyncio.gather(*[log.append(partition, events(5, 10), base=0) for partition in (0, 1)])
        assert [kind for kind, _ in replaced] == ["producer"]
        assert "OutOfOrderSequenceNumber" in replaced[0][1]
        for number in range(10, 20, 2):
            await asyncio.gather(*[log.append(partition, events(number, number + 2), base=0) for partition in (0, 1)])
        assert len(replaced) == 1
        for partition in (0, 1):
            assert same(await read(log, partition), events(0, 20))


async def test_a_hanging_producer_is_replaced_in_time(topics: KafkaTopics) -> None:
    replaced: list[str] = []
    hooks = KafkaHooks(replaced=lambda _, why: replaced.append(why))
    async with topics.open(hooks=hooks, replace_after=0.5) as log:
        await log.append(0, events(0, 3), base=0)
        hang(log, 0)
        await log.append(0, events(3, 6), base=0)
        assert len(replaced) == 1
        assert same(await read(log, 0), events(0, 6))


async def test_what_was_not_settled_goes_first_and_unchanged(topics: KafkaTopics) -> None:
    """The deadline passes while the batch is under way; the next append brings it in before its own events."""
    async with topics.open(append_timeout=0.5, replace_after=1) as log:
        await log.append(0, events(0, 3), base=0)
        hang(log, 0)
        with pytest.raises(OutcomeUnknown):
            await log.append(0, events(3, 6), base=2)
        await asyncio.sleep(0.6)
        hang_again = [events(6, 9), events(9, 12)]
        for sent in hang_again:
            async with asyncio.timeout(20):
                while True:
                    try:
                        await log.append(0, sent, base=3)
                    except Unavailable:
                        continue  # nothing of it was stored
                    break
        records = await read(log, 0)
        assert same(records, events(0, 12))
        assert [record.base for record in records] == [0] * 3 + [2] * 3 + [3] * 6


async def test_while_something_is_unsettled_nothing_newer_is_stored(topics: KafkaTopics) -> None:
    async with topics.open(append_timeout=1.5, replace_after=60) as log:
        await log.append(0, events(0, 3), base=0)
        hang(log, 0)
        with pytest.raises(OutcomeUnknown):
            await log.append(0, events(3, 6), base=0)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await log.append(0, events(6, 9), base=0)
        await log.append(1, events(20, 22), base=0)
        assert same(await read(log, 0), events(0, 3))


async def test_a_caller_that_goes_away_leaves_the_order_alone(topics: KafkaTopics) -> None:
    async with topics.open(replace_after=0.5) as log:
        await log.append(0, events(0, 1), base=0)
        hang(log, 0)
        gone = asyncio.create_task(log.append(0, [event("gone")], base=0))
        await asyncio.sleep(0.1)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await log.append(0, [event("next")], base=0)
        assert same(await read(log, 0), [event("0"), event("gone"), event("next")])


async def test_what_the_topic_does_not_take_is_refused_and_the_next_goes_in(topics: KafkaTopics) -> None:
    async with topics.open() as log:
        await log.append(0, events(0, 3), base=0)
        with pytest.raises(Unavailable, match="refuse"):
            await log.append(0, [event("large", data=b'"' + b"x" * 2_500_000 + b'"')], base=0)
        await log.append(0, events(3, 6), base=0)
        assert same(await read(log, 0), events(0, 6))


async def test_without_brokers_nothing_is_stored_and_that_is_said(topics: KafkaTopics) -> None:
    async with topics.open(append_timeout=0.5) as log:

        async def start() -> None:
            return None

        producers_of(log)._start = start  # type: ignore[method-assign]
        with pytest.raises(Unavailable, match="cannot be reached"):
            await log.append(0, events(0, 3), base=0)
        assert (await log.ends())[0] == 0


async def test_much_at_once_is_cut_into_batches(topics: KafkaTopics) -> None:
    async with topics.open() as log:
        sent = [event(str(number), data=b'"' + b"x" * 100_000 + b'"') for number in range(50)]
        await log.append(0, sent, base=0)
        assert same(await read(log, 0), sent)


@pytest.mark.parametrize("compression", ["gzip", "lz4", "snappy", "zstd"])
async def test_batches_can_be_packed(topics: KafkaTopics, compression: str) -> None:
    async with topics.open(compression=compression) as log:
        await log.append(0, events(0, 300), base=0)
    async with topics.open() as log:
        assert same(await read(log, 0), events(0, 300))
