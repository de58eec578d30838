"""Reading from Kafka when the reader is in trouble."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kafka_engine import KafkaTopics, kafka_url
from new_events import events, same

from shared.backends.kafka.hooks import KafkaHooks
from shared.backends.kafka.tail import KafkaTail
from shared.records import Record


@pytest.fixture
async def topics() -> AsyncIterator[KafkaTopics]:
    topics = KafkaTopics(kafka_url())
    yield topics
    await topics.remove()


async def read_some(tail: KafkaTail, count: int) -> list[Record]:
    records: list[Record] = []
    async with asyncio.timeout(30):
        while len(records) < count:
            for batch in await tail.poll(max_records=100, timeout=1):
                records += batch.records
    return records


async def test_a_reader_that_is_stuck_is_replaced(topics: KafkaTopics) -> None:
    replaced: list[str] = []
    hooks = KafkaHooks(replaced=lambda kind, _: replaced.append(kind))
    async with topics.open(partitions=1, hooks=hooks, replace_after=1) as log:
        await log.append(0, events(0, 10), base=0)
        tail = log.tail({0: 0})
        await read_some(tail, 10)
        assert tail._client is not None
        # as if a request had been forgotten: aiokafka waits for its answer before it asks a broker again
        tail._client._consumer._fetcher._in_flight.update({1, 2, 3})
        await asyncio.sleep(0.5)
        await log.append(0, events(10, 20), base=0)
        assert same(await read_some(tail, 10), events(10, 20))
        assert replaced == ["consumer"]


async def test_a_reader_whose_task_has_died_is_replaced(topics: KafkaTopics) -> None:
    async with topics.open(partitions=1) as log:
        await log.append(0, events(0, 10), base=0)
        tail = log.tail({0: 0})
        await read_some(tail, 10)
        assert tail._client is not None
        tail._client._consumer._fetcher._fetch_task.cancel()
        await log.append(0, events(10, 20), base=0)
        assert same(await read_some(tail, 10), events(10, 20))


async def test_a_quiet_partition_is_not_taken_for_a_stuck_one(topics: KafkaTopics) -> None:
    replaced: list[str] = []
    hooks = KafkaHooks(replaced=lambda kind, _: replaced.append(kind))
    async with topics.open(partitions=2, hooks=hooks, replace_after=0.5) as log:
        await log.append(0, events(0, 10), base=0)
        tail = log.tail({0: 0, 1: 0})
        await read_some(tail, 10)
        for _ in range(4):
            assert not await tail.poll(max_records=10, timeout=0.5)
        # nobody polls for a while: what waits then does not mean that the reader is stuck
        await log.append(1, events(10, 20), base=0)
        await asyncio.sleep(1)
        assert same(await read_some(tail, 10), events(10, 20))
        assert not replaced


async def test_leaders_are_counted(topics: KafkaTopics) -> None:
    async with topics.open(partitions=7) as log:
        assert log.leaders() == {}
        await log.ends()
        assert sum(log.leaders().values()) == 7


@pytest.mark.slow
async def test_a_position_that_never_comes_does_not_hold_the_reader_up(topics: KafkaTopics) -> None:
    replaced: list[str] = []
    hooks = KafkaHooks(replaced=lambda kind, _: replaced.append(kind))
    async with topics.open(partitions=1, hooks=hooks, replace_after=1) as log:
        await log.append(0, events(0, 10), base=0)
        tail = log.tail({0: 0})
        await read_some(tail, 10)
        assert tail._client is not None
        # aiokafka waits without end for the position of a partition that has lost it
        tail._client._consumer.position = lambda _: asyncio.Event().wait()
        tail._client._consumer._fetcher._in_flight.update({1, 2, 3})
        await asyncio.sleep(0.5)
        await log.append(0, events(10, 20), base=0)
        assert same(await read_some(tail, 10), events(10, 20))
        assert replaced == ["consumer"]


async def test_a_partition_that_is_stuck_is_seen_while_others_go_on(topics: KafkaTopics) -> None:
    replaced: list[str] = []
    hooks = KafkaHooks(replaced=lambda kind, _: replaced.append(kind))
    async with topics.open(partitions=2, hooks=hooks, replace_after=1) as log:
        tail = log.tail({0: 0, 1: 0})
        await log.append(0, events(0, 10), base=0)
        await read_some(tail, 10)
        client = tail._client
        assert client is not None
        fetched = client.fetched

        async def without_the_second(*args: Any, **kwargs: Any) -> Any:
            found = await fetched(*args, **kwargs)
            found.pop(1, None)
            return found

        client.fetched = without_the_second  # type: ignore[method-assign]
        client._consumer.position = lambda _: asyncio.Event().wait()
        await log.append(1, events(100, 110), base=0)
        await log.ends()
        seen: list[Record] = []
        async with asyncio.timeout(20):
            number = 10
            while len(seen) < 10:  # the first never pauses
                await log.append(0, events(number, number + 1), base=0)
                number += 1
                for batch in await tail.poll(max_records=100, timeout=5):
                    seen += batch.records if batch.partition == 1 else []
        assert same(seen, events(100, 110))
        assert set(replaced) == {"consumer"}
