"""Opening the MongoDB store: wrong settings are named, and whatever is not there yet is waited for."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from engine_set import mongo_url
from mongo_adapter import DRIVERS, Driver
from tcp_forward import forwarding

from shared.backends.mongo.opening import Waiting, locate, open_mongo_store
from shared.backends.mongo.store import MongoStore
from shared.clock import SystemClock
from shared.errors import StartError
from shared.position import Epoch
from shared.settings import MongoSettings

EPOCH = Epoch.create()
HOSTS = "a.example:1,b.example:2"


def opened(url: str, driver: Driver, waiting: Waiting | None = None) -> object:
    settings = MongoSettings(driver=driver, timeout=2.0, selection_timeout=0.5)
    return open_mongo_store(url, settings, SystemClock(), epoch=EPOCH, partitions=3, waiting=waiting)


async def fails(url: str, driver: Driver) -> str:
    async with asyncio.timeout(30):
        with pytest.raises(StartError) as caught:
            async with opened(url, driver):  # type: ignore[attr-defined]
                pass
    assert "secret" not in str(caught.value)
    return str(caught.value)


def hosts() -> str:
    return urlsplit(mongo_url()).netloc


@pytest.mark.parametrize("driver", DRIVERS)
class TestWrongSettings:
    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("http://host/", "must begin with 'mongodb://'"),
            ("mongodb://", "at least one hostname"),
            ("mongodb://user:secret@word@host/", "escaped"),
            ("mongodb://host:99999/", "between 0 and 65535"),
            ("mongodb://host/?nonsense=1", "Unknown option: nonsense"),
            ("mongodb://host/cdrs.events", "no dot"),
            ("mongodb://one,two/?directConnection=true", "directConnection"),
        ],
    )
    async def test_a_url_that_is_none(self, driver: Driver, url: str, said: str) -> None:
        message = await fails(url, driver)
        assert message.startswith("setting store.url: ")
        assert said.lower() in message.lower()

    async def test_credentials_that_are_refused(self, driver: Driver) -> None:
        query = urlsplit(mongo_url()).query
        message = await fails(f"mongodb://stranger:secret@{hosts()}/?{query}", driver)
        assert message.startswith("setting store.url: ")
        assert "'stranger'" in message
        assert hosts() in message

    async def test_another_replica_set(self, driver: Driver) -> None:
        message = await fails(f"mongodb://{hosts()}/?replicaSet=nobody", driver)
        assert "asks for replica set 'nobody'" in message
        assert hosts().split(",")[0] in message


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
class TestWaiting:
    @pytest.fixture(autouse=True)
    def collect_now(self) -> Iterator[None]:
        """PyMongo leaves an attempt to connect that is cancelled to the collector: not to that of a later test."""
        yield
        gc.collect()

    async def test_for_servers_that_start_later(self, driver: Driver) -> None:
        """Nobody listens at first; then a way to the replica set opens."""
        port = free_port()
        heard: list[str] = []
        missing = asyncio.Event()

        def waiting(detail: str) -> None:
            heard.append(detail)
            missing.set()

        async def use() -> None:
            async with opened(f"mongodb://127.0.0.1:{port}/", driver, waiting) as store:  # type: ignore[attr-defined]
                assert isinstance(store, MongoStore)
                assert len(await store.checkpoints()) == 3

        mongo_url()
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            using = group.create_task(use())
            await missing.wait()
            assert f"127.0.0.1:{port} does not answer" in heard[0]
            assert heard[0].startswith("setting store.url: no primary of ")
            async with forwarding(port, hosts().split(",")[0]):
                await using

    async def test_for_a_server_that_takes_connections_and_says_nothing(self, driver: Driver) -> None:
        heard: list[str] = []
        missing = asyncio.Event()

        def waiting(detail: str) -> None:
            heard.append(detail)
            missing.set()

        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            opening = asyncio.create_task(
                opened(f"mongodb://127.0.0.1:{port}/", driver, waiting).__aenter__()  # type: ignore[attr-defined]
            )
            async with asyncio.timeout(30):
                await missing.wait()
            assert f"127.0.0.1:{port} does not answer" in heard[0]
            opening.cancel()
            async with asyncio.timeout(10):
                await asyncio.wait({opening})
            assert opening.cancelled()


def test_what_is_shown_of_a_url_has_no_password() -> None:
    location = locate(f"mongodb://me:secret@{HOSTS}/mine?replicaSet=rs")
    assert location.shown == "mongodb://me@a.example:1,b.example:2/mine?replicaSet=rs"
    assert locate(f"mongodb://{HOSTS}/").database == "cdrs"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
