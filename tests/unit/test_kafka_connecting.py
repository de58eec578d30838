"""Who leads is asked of brokers that answer, and a silent one costs little."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import KafkaConnectionError

from shared.backends.kafka.connecting import hasten
from shared.settings import KafkaSettings

SETTINGS = KafkaSettings(connect_timeout=0.1, request_timeout=30.0)
FIRST = ("bootstrap", ConnectionGroup.DEFAULT)


class Broker:
    """A connection to one that answers, or does not, or fails."""

    def __init__(self, name: int | str, asked: list[int | str]) -> None:
        self.name = name
        self.how = "answers"
        self.is_closed = False
        self._request_timeout = 0.1
        self._asked = asked

    async def send(self, _request: object) -> Any:
        self._asked.append(self.name)
        if self.how == "fails":
            raise KafkaConnectionError
        if self.how == "is silent":
            await asyncio.Event().wait()
        return SimpleNamespace(brokers=[] if self.how == "knows nothing" else [1, 2, 3])

    def close(self) -> None:
        self.is_closed = True


class Client:
    """As much of aiokafka's as is used."""

    def __init__(self) -> None:
        self.asked: list[int | str] = []
        self.nodes: dict[int | str, Broker] = {name: Broker(name, self.asked) for name in (1, 2, 3, "bootstrap")}
        self.unreachable: set[int | str] = set()
        self.updates = self.failures = 0
        self.cluster = self
        self._request_timeout_ms = 30_000
        self._conns: dict[Any, Broker] = {}

    def brokers(self) -> list[Any]:
        return [SimpleNamespace(nodeId=name) for name in (1, 2, 3)]

    async def _get_conn(self, name: int | str, **_: object) -> Broker | None:
        await asyncio.sleep(0)
        return None if name in self.unreachable else self.nodes[name]

    def update_metadata(self, _metadata: object) -> None:
        self.updates += 1

    def failed_update(self, _error: object) -> None:
        self.failures += 1

    async def ask(self) -> bool:
        found: bool = await cast(Any, self)._metadata_update(self, {"topic"})
        return found


@pytest.fixture
def client() -> Client:
    made = Client()
    hasten(cast(AIOKafkaClient, made), SETTINGS)
    return made


@pytest.mark.parametrize("how", ["is silent", "fails"])
async def test_who_does_not_answer_is_asked_last_the_next_time(client: Client, how: str) -> None:
    client.nodes[2].how = client.nodes[3].how = how
    async with asyncio.timeout(10):
        while {2, 3} - set(client.asked):
            assert await client.ask()
        client.asked.clear()
        for _ in range(10):
            assert await client.ask()
        assert client.asked == [1] * 10
        client.nodes[1].how, client.nodes[2].how = how, "answers"
        assert await client.ask()
        client.asked.clear()
        assert await client.ask()
    assert client.asked == [2]
    assert client.failures == 0


async def test_where_nobody_answers_it_is_told(client: Client) -> None:
    client.unreachable = {1}
    client.nodes[2].how, client.nodes[3].how = "is silent", "fails"
    async with asyncio.timeout(10):
        assert not await client.ask()
    assert (client.updates, client.failures) == (0, 1)


async def test_connections_are_made_in_less_time_than_requests_have(client: Client) -> None:
    assert client._request_timeout_ms == 100  # pyright: ignore[reportPrivateUsage]
    connection = await cast(Any, client)._get_conn(1, group=ConnectionGroup.DEFAULT)
    assert connection._request_timeout == 30.0


async def test_the_first_connection_is_closed_once_brokers_are_known(client: Client) -> None:
    client._conns[FIRST] = client.nodes["bootstrap"]  # pyright: ignore[reportPrivateUsage]
    client.nodes["bootstrap"].how = client.nodes[1].how = client.nodes[2].how = client.nodes[3].how = "knows nothing"
    assert not await client.ask()
    assert not client.nodes["bootstrap"].is_closed
    for broker in client.nodes.values():
        broker.how = "answers"
    assert await client.ask()
    assert client.nodes["bootstrap"].is_closed


def test_what_stands_in_is_there_in_the_installed_version() -> None:
    for name in ("_get_conn", "_metadata_update"):
        assert callable(getattr(AIOKafkaClient, name))
