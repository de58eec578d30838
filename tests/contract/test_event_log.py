"""`EventLog`: one authority on which events exist and in which order."""

from __future__ import annotations

import asyncio

import pytest
from adapters import PARTITIONS, LogAdapter
from new_events import as_sent, event, events, read, same

from shared.errors import StaleStream
from shared.ports import EventLog, EventStore
from shared.records import Duplicate


async def test_an_epoch_belongs_to_one_log_for_good(adapter: LogAdapter) -> None:
    async with adapter.open() as (log, _), adapter.open() as (again, _), adapter.open_other() as (other, _):
        epoch = log.epoch
        assert again.epoch == epoch
        assert other.epoch != epoch
        await log.append(0, [event("a")], base=0)
        assert log.epoch == epoch
    async with adapter.open() as (log, _):
        assert log.epoch == epoch


async def test_partitions_are_numbered_from_zero(log: EventLog) -> None:
    assert log.partitions == PARTITIONS
    assert sorted(await log.ends()) == sorted(await log.starts()) == list(range(PARTITIONS))


async def test_a_new_log_is_empty(log: EventLog) -> None:
    assert set((await log.ends()).values()) == set((await log.starts()).values()) == {0}


async def test_what_was_appended_is_read_back_as_it_was_sent(log: EventLog) -> None:
    sent = [
        event("a", key="k", data=b'{"n": 1.0}'),
        event("b", stream="other.stream", data='"\u00fc\\n"'.encode()),
        event("c", source="/else"),
    ]
    entries = await log.append(1, sent, base=0)
    records = await read(log, 1)
    assert entries == [None if log.decides_identity else record.offset for record in records]
    assert [as_sent(record) for record in records] == sent
    assert {record.partition for record in records} == {1}


async def test_offsets_begin_at_zero_and_have_no_holes(log: EventLog) -> None:
    for start in range(0, 500, 50):
        await log.append(0, events(start, start + 50), base=0)
        assert (await log.ends())[0] == start + 50
    assert [record.offset for record in await read(log, 0)] == list(range(500))


async def test_partitions_are_counted_apart(log: EventLog) -> None:
    await log.append(0, events(0, 2), base=0)
    await log.append(2, events(2, 7), base=0)
    assert await log.ends() == {0: 2, 1: 0, 2: 5}


async def test_base_is_kept_with_the_record(log: EventLog) -> None:
    await log.append(0, events(0, 3), base=0)
    await log.append(0, events(3, 4), base=2)
    assert [record.base for record in await read(log, 0)] == [0, 0, 0, 2]


async def test_appending_nothing_writes_nothing(log: EventLog) -> None:
    assert list(await log.append(0, [], base=0)) == []
    assert (await log.ends())[0] == 0


async def test_an_event_of_any_size_is_kept(log: EventLog) -> None:
    sent = [event(str(size), data=b'"' + b"x" * size + b'"') for size in (0, 4_000, 70_000, 1_500_000, 1)]
    await log.append(0, sent, base=0)
    assert same(await read(log, 0), sent)


async def test_append_time_never_decreases_within_a_partition(log: EventLog) -> None:
    for number in range(20):
        await log.append(0, events(number * 3, number * 3 + 3), base=0)
    times = [record.append_ms for record in await read(log, 0)]
    assert times == sorted(times)
    assert times[0] > 1_500_000_000_000


async def test_order_is_that_of_the_calls(log: EventLog) -> None:
    sent = events(0, 1000)
    for start in range(0, 1000, 37):
        await log.append(0, sent[start : start + 37], base=0)
    assert same(await read(log, 0), sent)


async def test_calls_for_different_partitions_may_run_at_once(log: EventLog) -> None:
    async def fill(partition: int) -> None:
        for number in range(20):
            first = partition * 10_000 + number * 10
            await log.append(partition, events(first, first + 10), base=0)

    await asyncio.gather(*[fill(partition) for partition in range(PARTITIONS)])
    for partition in range(PARTITIONS):
        assert same(await read(log, partition), events(partition * 10_000, partition * 10_000 + 200))


async def test_several_processes_may_append_to_one_partition(log: EventLog, elsewhere: EventLog) -> None:
    async def fill(one: EventLog, first: int) -> None:
        for number in range(first, first + 200, 10):
            await one.append(0, events(number, number + 10), base=0)

    await asyncio.gather(fill(log, 0), fill(elsewhere, 1000))
    records = await read(log, 0)
    assert [record.offset for record in records] == list(range(400))
    wanted = [*events(0, 200), *events(1000, 1200)]
    assert sorted(record.value for record in records) == sorted(one.value for one in wanted)
    for first in (0, 1000):
        mine = {one.value for one in events(first, first + 200)}
        assert same([record for record in records if record.value in mine], events(first, first + 200))


async def test_ends_are_the_logs_own(log: EventLog, elsewhere: EventLog) -> None:
    await log.append(0, events(0, 3), base=0)
    assert (await elsewhere.ends())[0] == 3
    await elsewhere.append(0, events(3, 4), base=0)
    assert (await log.ends())[0] == 4


async def test_records_survive_closing(adapter: LogAdapter) -> None:
    async with adapter.open() as (log, _):
        await log.append(0, events(0, 100), base=0)
    async with adapter.open() as (log, _):
        assert same(await read(log, 0), events(0, 100))
        await log.append(0, events(100, 101), base=0)
        assert (await log.ends())[0] == 101


async def test_a_cancelled_append_disturbs_nobody(log: EventLog) -> None:
    for number in range(20):
        task = asyncio.create_task(log.append(0, [event(f"cancelled-{number}")], base=0))
        if number % 2:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await log.append(0, [event(f"kept-{number}")], base=0)
    values = [record.value for record in await read(log, 0)]
    kept = [event(f"kept-{number}").value for number in range(20)]
    assert [value for value in values if value in kept] == kept
    assert len(values) == len(set(values))


class TestStreams:
    """Only of logs that know of streams."""

    @pytest.fixture(autouse=True)
    def _knows_streams(self, adapter: LogAdapter) -> None:
        if not adapter.knows_streams:
            pytest.skip("spreads are checked where streams are known, not by this log")

    async def test_another_spread_is_refused_and_nothing_stored(self, log: EventLog) -> None:
        await log.append(0, [event("a", spread=2)], base=0)
        with pytest.raises(StaleStream):
            await log.append(0, [event("new", stream="innocent"), event("b", spread=1)], base=0)
        assert (await log.ends())[0] == 1
        assert await log.append(0, [event("b", spread=2)], base=0) == [None]

    async def test_what_was_refused_creates_no_stream(self, log: EventLog, store: EventStore) -> None:
        await log.append(0, [event("a", spread=2)], base=0)
        with pytest.raises(StaleStream):
            await log.append(0, [event("new", stream="innocent", spread=5), event("b")], base=0)
        assert await store.stream("innocent") is None
        await log.append(0, [event("new", stream="innocent", spread=1)], base=0)

    async def test_one_call_cannot_disagree_with_itself(self, log: EventLog) -> None:
        with pytest.raises(StaleStream):
            await log.append(0, [event("a", spread=1), event("b", spread=2)], base=0)
        assert (await log.ends())[0] == 0

    async def test_another_call_is_not_touched_by_a_refusal(self, log: EventLog) -> None:
        await log.append(0, [event("a", spread=2)], base=0)
        good, bad, other = await asyncio.gather(
            log.append(1, events(0, 5, stream="good"), base=0),
            log.append(0, [event("b", spread=3)], base=0),
            log.append(2, events(0, 5, stream="other"), base=0),
            return_exceptions=True,
        )
        assert good == other == [None] * 5
        assert isinstance(bad, StaleStream)

    async def test_a_stream_created_elsewhere_counts(self, log: EventLog, elsewhere: EventLog) -> None:
        await log.append(0, [event("a")], base=0)
        await elsewhere.append(0, [event("b", stream="theirs", spread=4)], base=0)
        with pytest.raises(StaleStream):
            await log.append(0, [event("c", stream="theirs", spread=1)], base=0)


class TestDuplicates:
    """Only of logs that decide identity."""

    @pytest.fixture(autouse=True)
    def _decides(self, log: EventLog) -> None:
        if not log.decides_identity:
            pytest.skip("this log leaves identity to its readers")

    async def test_a_duplicate_names_the_first(self, log: EventLog) -> None:
        await log.append(0, events(0, 10), base=0)
        first = (await read(log, 0))[7]
        assert await log.append(0, [event("7")], base=10) == [Duplicate(0, 7, first.append_ms, same_body=True)]
        assert (await log.ends())[0] == 10

    async def test_new_ones_beside_it_are_stored(self, log: EventLog) -> None:
        await log.append(0, events(0, 10), base=0)
        answers = await log.append(0, events(8, 12), base=10)
        assert [answer and answer.offset for answer in answers] == [8, 9, None, None]
        assert same(await read(log, 0), events(0, 12))

    async def test_within_one_call(self, log: EventLog) -> None:
        answers = await log.append(0, [event("a"), event("b"), event("a"), event("a", data=b"2")], base=0)
        records = await read(log, 0)
        assert answers == [
            None,
            None,
            Duplicate(0, 0, records[0].append_ms, same_body=True),
            Duplicate(0, 0, records[0].append_ms, same_body=False),
        ]
        assert len(records) == 2

    async def test_in_calls_that_run_at_once(self, log: EventLog) -> None:
        calls = await asyncio.gather(*[log.append(p, events(0, 50), base=0) for p in (0, 1, 2)])
        assert sum(answer is None for answers in calls for answer in answers) == 50
        ends = await log.ends()
        assert sum(ends.values()) == 50

    async def test_in_another_partition(self, log: EventLog) -> None:
        await log.append(0, [event("a")], base=0)
        (answer,) = await log.append(2, [event("a")], base=0)
        assert answer is not None
        assert (answer.partition, answer.offset, answer.same_body) == (0, 0, True)

    async def test_of_another_process(self, log: EventLog, elsewhere: EventLog) -> None:
        await log.append(0, events(0, 10), base=0)
        assert [a and a.offset for a in await elsewhere.append(0, events(5, 15), base=0)] == [*range(5, 10)] + [
            None
        ] * 5
        assert [a and a.offset for a in await log.append(0, events(12, 16), base=0)] == [12, 13, 14, None]

    async def test_body_and_key_are_compared(self, log: EventLog) -> None:
        await log.append(0, [event("a", key="k")], base=0)
        answers = await log.append(
            0, [event("a", key="k"), event("a", key="other"), event("a"), event("a", key="k", data=b"2")], base=0
        )
        assert [answer and answer.same_body for answer in answers] == [True, False, False, False]

    async def test_another_source_or_stream_is_another_event(self, log: EventLog) -> None:
        assert await log.append(0, [event("a"), event("a", source="/b"), event("a", stream="s")], base=0) == [None] * 3

    async def test_an_id_wrongly_said_to_be_fresh(self, log: EventLog) -> None:
        await log.append(0, [event("a")], base=0)
        answers = await log.append(0, [event("b", fresh=True), event("a", fresh=True)], base=0)
        assert [answer and answer.offset for answer in answers] == [None, 0]
        assert same(await read(log, 0), [event("a"), event("b")])

    async def test_many_at_once(self, log: EventLog) -> None:
        sent = [event(str(n), data=b'"' + b"x" * (n % 700) + b'"') for n in range(3000)]
        await log.append(0, sent, base=0)
        answers = await log.append(0, list(reversed(sent)), base=0)
        assert [answer and (answer.offset, answer.same_body) for answer in answers] == [
            (n, True) for n in reversed(range(3000))
        ]
