"""A client that lets the end of one of its own tasks through must not end ours."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from cdrs.tasks import Supervisor
from shared.backends.kafka.client import CLIENT_ERRORS, ConsumerClient, within
from shared.clock import SystemClock


async def stray() -> None:
    """What aiokafka's ``Fetcher.close`` does: wait for a task that it has cancelled."""
    inner = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    inner.cancel()
    await inner


async def test_a_client_that_does_not_end_well_is_given_up() -> None:
    assert not await within(5, stray())


async def test_whoever_is_to_end_ends_although_a_client_is_being_closed() -> None:
    closing = asyncio.create_task(within(60, asyncio.sleep(60)))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing


async def test_a_supervised_task_goes_on() -> None:
    went_on, begun = asyncio.Event(), 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            await stray()
        went_on.set()
        await asyncio.sleep(60)

    supervisor = Supervisor(SystemClock())
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        running = group.create_task(supervisor.run("tail", work))
        await went_on.wait()
        assert "tail failed (CancelledError)" in supervisor.trouble
        running.cancel()
    assert begun == 2


async def test_what_a_client_of_kafka_lets_through_is_one_of_its_errors() -> None:
    consumer: Any = ConsumerClient.__new__(ConsumerClient)
    consumer._partitions = []
    consumer._consumer = SimpleNamespace(end_offsets=lambda _: stray(), getmany=lambda *_, **__: asyncio.sleep(60))
    with pytest.raises(CLIENT_ERRORS):
        await consumer.ends(5)
    reading = asyncio.create_task(consumer.fetched((), max_records=1, timeout=60))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
