"""`LogTail`: following partitions without gap or overlap."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from adapters import PARTITIONS, LogAdapter
from new_events import events, read, same

from shared.ports import EventLog, LogTail
from shared.records import Record


async def drain(tail: LogTail, count: int, *, max_records: int = 1000) -> dict[int, list[Record]]:
    """So many records, by partition."""
    found: dict[int, list[Record]] = defaultdict(list)
    while sum(map(len, found.values())) < count:
        batches = await tail.poll(max_records=max_records, timeout=5)
        assert batches, f"{sum(map(len, found.values()))} of {count} records, and nothing more within 5 s"
        assert sum(len(batch.records) for batch in batches) <= max_records
        for batch in batches:
            assert [record.offset for record in batch.records] == list(range(batch.start, batch.next))
            if found[batch.partition]:
                assert found[batch.partition][-1].offset + 1 == batch.start
            found[batch.partition] += batch.records
    return found


async def test_without_records_it_waits_and_is_empty(log: EventLog) -> None:
    tail = log.tail({0: 0})
    assert list(await tail.poll(max_records=10, timeout=0.05)) == []
    assert list(await tail.poll(max_records=10, timeout=0)) == []


async def test_it_begins_where_it_was_told(log: EventLog) -> None:
    await log.append(0, events(0, 200), base=0)
    found = await drain(log.tail({0: 130}), 70)
    assert same(found[0], events(130, 200))


async def test_small_polls_leave_nothing_out(log: EventLog) -> None:
    for first in range(0, 300, 23):
        await log.append(0, events(first, min(first + 23, 300)), base=0)
    for size in (1, 7, 64, 65, 1000):
        assert same((await drain(log.tail({0: 0}), 300, max_records=size))[0], events(0, 300))


async def test_own_records_are_seen_at_once(log: EventLog) -> None:
    tail = log.tail({0: 0})
    for number in range(50):
        await log.append(0, events(number, number + 1), base=0)
        (batch,) = await tail.poll(max_records=10, timeout=0)
        assert (batch.start, batch.next) == (number, number + 1)


async def test_a_waiting_tail_is_woken_by_an_append(log: EventLog) -> None:
    tail = log.tail({0: 0})
    waiting = asyncio.create_task(tail.poll(max_records=10, timeout=30))
    await asyncio.sleep(0)
    await log.append(0, events(0, 2), base=0)
    (batch,) = await waiting
    assert same(batch.records, events(0, 2))


async def test_other_processes_records_are_seen(log: EventLog, elsewhere: EventLog) -> None:
    tail = log.tail({0: 0})
    for number in range(20):
        waiting = asyncio.create_task(tail.poll(max_records=10, timeout=30))
        await elsewhere.append(0, events(number, number + 1), base=0)
        (batch,) = await waiting
        assert same(batch.records, events(number, number + 1))


async def test_both_processes_see_one_sequence(log: EventLog, elsewhere: EventLog) -> None:
    tails = [log.tail({0: 0, 1: 0}), elsewhere.tail({0: 0, 1: 0})]

    async def fill(one: EventLog, first: int) -> None:
        for number in range(first, first + 300, 3):
            await one.append(number % 2, events(number, number + 3), base=0)

    views, *_ = await asyncio.gather(
        asyncio.gather(*[drain(tail, 600, max_records=50) for tail in tails]), fill(log, 0), fill(elsewhere, 1000)
    )
    assert views[0] == views[1]
    assert views[0] == {p: await read(log, p) for p in (0, 1)}


async def test_partitions_are_followed_side_by_side(log: EventLog) -> None:
    for partition in range(PARTITIONS):
        await log.append(partition, events(partition * 1000, partition * 1000 + 100), base=0)
    found = await drain(log.tail({0: 0, 2: 50}), 150, max_records=40)
    assert same(found[0], events(0, 100))
    assert same(found[2], events(2050, 2100))
    assert 1 not in found


async def test_a_busy_partition_does_not_starve_another(log: EventLog) -> None:
    await log.append(0, events(0, 1000), base=0)
    await log.append(1, events(1000, 1010), base=0)
    tail = log.tail({0: 0, 1: 0})
    seen = [batch.partition for _ in range(4) for batch in await tail.poll(max_records=20, timeout=5)]
    assert 1 in seen


async def test_seek_goes_anywhere(log: EventLog) -> None:
    await log.append(0, events(0, 100), base=0)
    await log.append(1, events(100, 110), base=0)
    tail = log.tail({0: 0})
    await drain(tail, 100)
    tail.seek(0, 40)
    assert same((await drain(tail, 60))[0], events(40, 100))
    tail.seek(0, 95)
    tail.seek(1, 2)
    found = await drain(tail, 13)
    assert same(found[0], events(95, 100))
    assert same(found[1], events(102, 110))


async def test_a_position_ahead_of_the_log_waits_for_it(log: EventLog) -> None:
    tail = log.tail({0: 5})
    await log.append(0, events(0, 5), base=0)
    assert list(await tail.poll(max_records=10, timeout=0.05)) == []
    await log.append(0, events(5, 7), base=0)
    assert same((await drain(tail, 2))[0], events(5, 7))


async def test_a_forgotten_partition_is_not_read(log: EventLog) -> None:
    tail = log.tail({0: 0, 1: 0})
    tail.forget(0)
    tail.forget(2)
    await log.append(0, events(0, 5), base=0)
    await log.append(1, events(5, 10), base=0)
    assert set(await drain(tail, 5)) == {1}
    assert list(await tail.poll(max_records=10, timeout=0.05)) == []


async def test_tails_do_not_touch_each_other(log: EventLog) -> None:
    one, two = log.tail({0: 0}), log.tail({0: 0})
    await log.append(0, events(0, 10), base=0)
    await drain(one, 10)
    assert same((await drain(two, 10))[0], events(0, 10))


async def test_a_cancelled_poll_loses_nothing(log: EventLog, elsewhere: EventLog) -> None:
    tail = log.tail({0: 0})
    found: list[Record] = []
    for number in range(30):
        waiting = asyncio.create_task(tail.poll(max_records=10, timeout=5))
        await (elsewhere if number % 2 else log).append(0, events(number, number + 1), base=0)
        waiting.cancel()
        (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
        if not isinstance(outcome, BaseException):
            found += [record for batch in outcome for record in batch.records]
    if len(found) < 30:
        found += (await drain(tail, 30 - len(found)))[0]
    assert same(found, events(0, 30))


async def test_history_is_read_after_reopening(adapter: LogAdapter) -> None:
    async with adapter.open() as (log, _):
        await log.append(0, events(0, 5000), base=0)
    async with adapter.open() as (log, _):
        tail = log.tail({0: 0})
        assert same((await drain(tail, 5000))[0], events(0, 5000))
        await log.append(0, events(5000, 5001), base=0)
        assert same((await drain(tail, 1))[0], events(5000, 5001))


async def test_a_slow_tail_reads_what_memory_no_longer_holds(log: EventLog) -> None:
    tail = log.tail({0: 0})
    await log.append(0, events(0, 10), base=0)
    await drain(tail, 10)
    for first in range(10, 12_000, 1000):
        await log.append(0, events(first, min(first + 1000, 12_000)), base=0)
    assert same((await drain(tail, 11_990))[0], events(10, 12_000))


async def test_closing_twice_is_once(log: EventLog) -> None:
    tail = log.tail({0: 0})
    await tail.close()
    await tail.close()
