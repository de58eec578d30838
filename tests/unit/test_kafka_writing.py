"""One partition's way into the topic while its brokers take nothing: waited for at first, then refused at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from shared.backends.kafka import writing
from shared.backends.kafka.codec import Outgoing
from shared.backends.kafka.producing import Producers
from shared.backends.kafka.writing import PartitionWriter
from shared.clock import SystemClock
from shared.errors import LogAway, OutcomeUnknown, Unavailable
from shared.settings import KafkaSettings

RECORDS = [Outgoing(None, b"1", [])]
WITHIN = 10.0


class Metadata:
    def __init__(self, offset: int) -> None:
        self.offset = offset


class Brokers:
    """Producers, one after the other, whose batches are acknowledged where they are told to."""

    def __init__(self) -> None:
        self.there = asyncio.Event()
        self.acknowledges = True
        self.sent: list[asyncio.Future[Metadata]] = []

    async def get(self, deadline: float) -> Any:
        try:
            async with asyncio.timeout_at(deadline):
                await self.there.wait()
        except TimeoutError as error:
            raise Unavailable("Kafka cannot be reached") from error
        return self

    @property
    def ended(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    async def send(self, _partition: int, _records: Sequence[Outgoing], _ms: int) -> asyncio.Future[Metadata]:
        future: asyncio.Future[Metadata] = asyncio.get_running_loop().create_future()
        self.sent.append(future)
        if self.acknowledges:
            self.acknowledge(future)
        return future

    def acknowledge(self, future: asyncio.Future[Metadata]) -> None:
        future.set_result(Metadata(self.sent.index(future)))

    def retire(self, *_: object) -> None:
        pass


def writer(brokers: Brokers, append_timeout: float) -> PartitionWriter:
    settings = KafkaSettings(append_timeout=append_timeout, replace_after=append_timeout)
    return PartitionWriter(0, cast("Producers", brokers), settings, SystemClock())


async def test_brokers_that_stay_away_are_waited_for_at_first_and_then_no_more() -> None:
    brokers, refusals = Brokers(), list[type[Unavailable]]()
    partition = writer(brokers, append_timeout=0.5)
    async with asyncio.timeout(WITHIN):
        while LogAway not in refusals:
            with pytest.raises(Unavailable) as refused:
                await partition.append(RECORDS)
            refusals.append(refused.type)
    assert refusals[:2] == [Unavailable, Unavailable]
    brokers.there.set()
    assert await partition.append(RECORDS) == [0]
    brokers.there.clear()
    with pytest.raises(Unavailable) as refused:
        await partition.append(RECORDS)
    assert refused.type is Unavailable, "it is another outage"


async def test_a_failure_of_long_ago_is_no_outage() -> None:
    brokers = Brokers()
    partition = writer(brokers, append_timeout=0.5)
    with pytest.raises(Unavailable):
        await partition.append(RECORDS)
    for name in ("_failing_since", "_failed_at"):
        setattr(partition, name, getattr(partition, name) - 3600)
    with pytest.raises(Unavailable) as refused:
        await partition.append(RECORDS)
    assert refused.type is Unavailable, "it was waited for"


async def test_what_was_sent_after_an_outage_has_its_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "AWAY_AFTER", 0.0)
    monkeypatch.setattr(writing, "AT_ONCE", 0.01)
    brokers = Brokers()
    partition = writer(brokers, append_timeout=WITHIN)
    partition._failing_since = float("-inf")  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(LogAway):
        await partition.append(RECORDS)
    brokers.acknowledges = False
    brokers.there.set()
    append = asyncio.create_task(partition.append(RECORDS))
    async with asyncio.timeout(WITHIN):
        while not brokers.sent:
            await asyncio.sleep(0)
    await asyncio.wait((append,), timeout=5 * writing.AT_ONCE)
    assert not append.done()
    brokers.acknowledge(brokers.sent[0])
    assert await append == [0]


async def test_behind_a_batch_of_unknown_outcome_others_are_refused_and_it_is_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writing, "AWAY_AFTER", 0.0)
    brokers = Brokers()
    brokers.there.set()
    brokers.acknowledges = False
    partition = writer(brokers, append_timeout=0.5)
    with pytest.raises(OutcomeUnknown):
        await partition.append(RECORDS)
    with pytest.raises(LogAway):
        await partition.append(RECORDS)
    assert len(brokers.sent) <= 2, "only the first, perhaps once more"
    brokers.acknowledges = True
    brokers.acknowledge(brokers.sent[-1])
    assert await partition.append(RECORDS) == [len(brokers.sent) - 1]
