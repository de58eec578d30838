"""Producers, and their replacement.

An idempotent producer of aiokafka that has met an error on a partition may be poisoned there for good: a sequence
number is burnt, and the brokers refuse all that follows. One that hangs may hang for ever. So a producer that gave
trouble is retired: it finishes what it has under way for other partitions if it can, and everything new goes to
another one. Whoever had a batch under way sends it again, unchanged; if both copies reach the log, judgement finds the
second to be a duplicate (same identity, same base).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from shared.backends.kafka.client import CLIENT_ERRORS, Connection, ProducerClient, describe
from shared.backends.kafka.codec import Outgoing
from shared.cancelling import is_cancelled
from shared.errors import Unavailable

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0

_logger = logging.getLogger(__name__)


class Producer:
    """A started producer and how many batches it has under way."""

    def __init__(self, client: ProducerClient, number: int) -> None:
        self._client = client
        self.number = number
        """Counts the producers of this process."""
        self._under_way: set[asyncio.Future[Any]] = set()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it sends nothing more; what is still under way then will not be settled."""

    async def send(self, partition: int, records: Sequence[Outgoing], timestamp_ms: int) -> asyncio.Future[Any]:
        """`ProducerClient.send`."""
        future = await self._client.send(partition, records, timestamp_ms)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    async def stop(self, grace: float) -> None:
        """End it; what is under way has this many seconds left, or none if this is cancelled."""
        try:
            if self._under_way and grace > 0:
                await asyncio.wait(set(self._under_way), timeout=grace)
        finally:
            try:
                await _stop(self._client)
            finally:
                self.ended.set_result(None)


class Producers:
    """Always one producer for new batches, made when it is needed."""

    def __init__(self, connection: Connection, replaced: Callable[[str], None]) -> None:
        self._connection = connection
        self._replaced = replaced
        self._current: Producer | None = None
        self._there = asyncio.Event()
        self._wanted = asyncio.Event()
        self._retired: asyncio.Queue[Producer] = asyncio.Queue()
        self._number = 0
        self._trouble = "no producer yet"

    async def run(self) -> None:
        """Make producers and end retired ones, until cancelled; then end them all."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._make_all())
                while True:
                    producer = await self._retired.get()
                    group.create_task(producer.stop(self._connection.settings.replace_after))
        finally:
            await self._stop_all()

    async def get(self, deadline: float) -> Producer:
        """The producer for new batches. Raises `Unavailable` where there is none until the deadline."""
        while self._current is None:
            self._wanted.set()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._there.wait()
            except TimeoutError as error:
                raise Unavailable(f"Kafka cannot be reached: {self._trouble}", retry_after=1.0) from error
        return self._current

    def retire(self, producer: Producer, reason: str) -> None:
        """Use this one no longer. Does nothing if that was done already."""
        if producer is not self._current:
            return
        self._current = None
        self._there.clear()
        self._wanted.set()
        self._retired.put_nowait(producer)
        _logger.warning("producer %d is replaced: %s", producer.number, reason)
        self._replaced(reason)

    async def _make_all(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if self._current is None:
                await self._make()

    async def _make(self) -> None:
        pause = FIRST_PAUSE
        while (client := await self._start()) is None:
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        self._number += 1
        self._current = Producer(client, self._number)
        self._there.set()

    async def _start(self) -> ProducerClient | None:
        client = self._connection.producer()
        started = False
        try:
            await client.start()
            started = True
        except CLIENT_ERRORS as error:
            self._trouble = describe(error)
            _logger.debug("no producer: %s", self._trouble)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            # Not an answer that it is known to give. Without another attempt nothing could be appended ever again.
            self._trouble = describe(error)
            _logger.exception("a producer could not be made; trying again")
        finally:
            if not started:
                await _stop(client)
        return client if started else None

    async def _stop_all(self) -> None:
        ending: list[Producer] = [] if self._current is None else [self._current]
        self._current = None
        self._there.clear()
        while not self._retired.empty():
            ending.append(self._retired.get_nowait())
        await asyncio.gather(*[producer.stop(0) for producer in ending])


async def _stop(client: ProducerClient) -> None:
    """End a client, which may fail at that too; nobody is to suffer for it."""
    try:
        await client.stop()
    except (Exception, asyncio.CancelledError) as error:
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            raise
        _logger.exception("a producer could not be stopped")
