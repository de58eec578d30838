"""The Hazelcast registry where there is no cluster: nothing waits for it, and it says what is wrong. Needs none."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from model_nodes import eventually, member

from shared.backends.hazelcast.registry import HazelcastRegistry, open_hazelcast_registry
from shared.errors import Unavailable
from shared.settings import RegistrySettings

SETTINGS = RegistrySettings(timeout=0.3)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def web_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if await reader.read(1):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


async def all_calls_are_refused(registry: HazelcastRegistry) -> None:
    for call in (
        registry.members,
        registry.beats,
        lambda: registry.join(member("a")),
        lambda: registry.leave(member("a")),
    ):
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable, match=r"registry\.url|connecting"):
                await call()


async def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    port = unused_port()
    async with open_hazelcast_registry(f"hazelcast://127.0.0.1:{port},nowhere.invalid:5701/c", SETTINGS) as registry:
        assert "connecting" in registry.detail, "it comes at once"
        await all_calls_are_refused(registry)
        await eventually(lambda: "tried" in registry.detail)
        await all_calls_are_refused(registry)
        assert f"127.0.0.1:{port} Connection refused" in registry.detail
        assert "nowhere.invalid:5701 " in registry.detail
        assert "'c'" in registry.detail
        rounds = registry._link.rounds
        await eventually(lambda: registry._link.rounds > rounds)
    said = [record.message for record in caplog.records if "registry.url" in record.message]
    assert len(said) == 1, "once, however often it is tried"


@pytest.mark.parametrize(
    ("handler", "said"), [(mute, "accepts connections but does not answer"), (web_server, "is no Hazelcast member")]
)
async def test_somebody_else_listens(handler: Handler, said: str) -> None:
    async with listening(handler) as port:
        async with open_hazelcast_registry(f"hazelcast://127.0.0.1:{port}/c", SETTINGS) as registry:
            await eventually(lambda: said in registry.detail)
            await all_calls_are_refused(registry)
        assert not [task for task in asyncio.all_tasks() if "hazelcast" in repr(task.get_coro())]


async def test_it_ends_while_it_connects() -> None:
    async with listening(mute) as port:
        async with asyncio.timeout(5):
            async with open_hazelcast_registry(f"hazelcast://127.0.0.1:{port}/c", SETTINGS):
                await asyncio.sleep(0.1)
        await eventually(lambda: not [task for task in asyncio.all_tasks() if "hazelcast" in repr(task.get_coro())])


async def test_an_error_of_its_user_is_not_wrapped() -> None:
    with pytest.raises(KeyError):
        async with open_hazelcast_registry(f"hazelcast://127.0.0.1:{unused_port()}/c", SETTINGS):
            raise KeyError
