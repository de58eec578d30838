"""A client that lets the end of one of its own tasks through must not end ours."""

from __future__ import annotations

import asyncio

import pytest

from cdrs.tasks import Supervisor
from shared.backends.kafka.client import within
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
