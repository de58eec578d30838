"""Questions to the brokers: where partitions begin and end, who leads them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from shared.backends.kafka.client import CLIENT_ERRORS, Connection, ConsumerClient, describe
from shared.errors import Unavailable
from shared.offers import Replicas

T = TypeVar("T")


class Inquirer:
    """One client for all questions of a log. It is made when it is first needed, and again after it failed."""

    def __init__(self, connection: Connection, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout
        self._client: ConsumerClient | None = None
        self._making = asyncio.Lock()
        self._asked: dict[int, int] = {}
        self._asked_at = 0.0

    async def ends(self) -> Mapping[int, int]:
        """Per partition the next offset to be written. Raises `Unavailable`."""
        ends = await self._ask(lambda client: client.ends(self._timeout))
        self._asked = ends
        self._asked_at = asyncio.get_running_loop().time()
        return dict(ends)

    @property
    def known_ends(self) -> Mapping[int, int]:
        """`ends`, as last answered; empty before that. Ends never go back, so the log holds at least this much."""
        return self._asked

    async def recent_ends(self, max_age: float) -> Mapping[int, int]:
        """`ends`, or what it answered so many seconds ago."""
        if self._asked and asyncio.get_running_loop().time() - self._asked_at <= max_age:
            return self._asked
        return await self.ends()

    async def starts(self) -> Mapping[int, int]:
        """Per partition the first offset that is kept. Raises `Unavailable`."""
        return await self._ask(lambda client: client.starts(self._timeout))

    async def firsts(self) -> Mapping[int, tuple[int, int]]:
        """Per partition that has any, offset and stamp of the first record kept. Raises `Unavailable`."""
        return await self._ask(lambda client: client.firsts(self._timeout))

    def leaders(self) -> dict[int, int]:
        """Broker → how many partitions it leads; empty before the first question was answered."""
        return {} if self._client is None else self._client.leaders()

    def replicas(self) -> dict[int, Replicas]:
        """`KafkaLog.replicas`."""
        return {} if self._client is None else self._client.replicas()

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.stop()

    async def _ask(self, question: Callable[[ConsumerClient], Awaitable[T]]) -> T:
        client = await self._connect()
        try:
            return await question(client)
        except CLIENT_ERRORS as error:
            if client is self._client:
                await self.close()
            raise Unavailable(f"Kafka does not answer: {describe(error)}", retry_after=1.0) from error

    async def _connect(self) -> ConsumerClient:
        async with self._making:
            if self._client is None:
                self._client = await start_consumer(self._connection)
            return self._client


async def start_consumer(connection: Connection) -> ConsumerClient:
    """A started consumer. Raises `Unavailable`."""
    client = connection.consumer()
    started = False
    try:
        await client.start()
        started = True
    except CLIENT_ERRORS as error:
        raise Unavailable(f"Kafka cannot be reached: {describe(error)}", retry_after=1.0) from error
    finally:
        if not started:
            await client.stop()
    return client
