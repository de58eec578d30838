"""Producers are made and replaced whatever the client does: without one nothing can be appended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from shared.backends.kafka.client import Connection
from shared.backends.kafka.producing import Producers
from shared.settings import KafkaSettings

WITHIN = 10.0


class Client:
    """A producer that fails when it is started or stopped, where it is told to."""

    def __init__(self, starts: list[BaseException], stops: list[BaseException]) -> None:
        self._starts = starts
        self._stops = stops

    async def start(self) -> None:
        await asyncio.sleep(0)
        if self._starts:
            raise self._starts.pop(0)

    async def stop(self) -> None:
        await asyncio.sleep(0)
        if self._stops:
            raise self._stops.pop(0)


class Broken:
    """What producers are made by."""

    def __init__(self, *, starts: list[BaseException] | None = None, stops: list[BaseException] | None = None) -> None:
        self.settings = KafkaSettings()
        self._starts = starts or []
        self._stops = stops or []

    def producer(self) -> Any:
        return Client(self._starts, self._stops)


@asynccontextmanager
async def running(connection: Broken) -> AsyncGenerator[Producers]:
    producers = Producers(cast("Connection", connection), lambda _: None)
    task = asyncio.create_task(producers.run())
    try:
        yield producers
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def one(producers: Producers) -> Any:
    return await producers.get(asyncio.get_running_loop().time() + WITHIN)


FAILURES = [RuntimeError("a defect"), asyncio.CancelledError(), OSError("no broker")]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_one_that_cannot_be_made_is_tried_again(error: BaseException) -> None:
    async with running(Broken(starts=[error])) as producers:
        assert (await one(producers)).number == 1


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_one_that_cannot_be_stopped_is_replaced_all_the_same(error: BaseException) -> None:
    async with running(Broken(stops=[error])) as producers:
        first = await one(producers)
        producers.retire(first, "a test")
        assert (await one(producers)).number == 2
        await asyncio.wait_for(first.ended, WITHIN)
