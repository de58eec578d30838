"""The topic that is the log: how it is found, made and checked; and waiting for a cluster that is not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from kafka_engine import KafkaTopics, kafka_url
from new_events import events, read, same

from shared.backends.kafka.address import parse_kafka_url
from shared.backends.kafka.admin import Admin, open_admin
from shared.backends.kafka.hooks import KafkaHooks
from shared.backends.kafka.log import open_kafka_log
from shared.backends.kafka.topics import claim_name, make_epoch, topic_name
from shared.clock import SystemClock
from shared.errors import StartError
from shared.position import Epoch
from shared.settings import KafkaSettings, LogSettings


@pytest.fixture
async def topics() -> AsyncIterator[KafkaTopics]:
    topics = KafkaTopics(kafka_url())
    yield topics
    await topics.remove()


@asynccontextmanager
async def admin_of(topics: KafkaTopics) -> AsyncIterator[Admin]:
    async with open_admin(*parse_kafka_url(topics.url, KafkaSettings())) as admin:
        yield admin


STRONG = {
    "min.insync.replicas": "2",
    "unclean.leader.election.enable": "false",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "max.message.bytes": "2097152",
    "message.timestamp.type": "LogAppendTime",
    "cleanup.policy": "delete",
}


async def test_a_new_topic_loses_nothing(topics: KafkaTopics) -> None:
    async with topics.open(partitions=5) as log, admin_of(topics) as admin:
        name = topic_name(f"{topics.prefix}.one", log.epoch)
        assert log.topic == name
        info = (await admin.topics())[name]
        assert (info.partitions, info.replicas) == (5, 3)
        properties = await admin.properties(name)
        assert {key: properties[key] for key in STRONG} == STRONG
        assert "flush.messages" not in properties or properties["flush.messages"] != "1"
        await log.ends()
        assert sum(log.leaders().values()) == 5
        assert len(log.leaders()) == 3


async def test_paranoid_writes_to_the_disk_first(topics: KafkaTopics) -> None:
    async with topics.open(paranoid=True) as log, admin_of(topics) as admin:
        assert (await admin.properties(log.topic))["flush.messages"] == "1"
    async with topics.open("plain"):
        pass
    with pytest.raises(StartError, match=r"flush\.messages"):
        async with topics.open("plain", paranoid=True):
            pass


async def test_a_log_that_exists_keeps_its_partitions(topics: KafkaTopics) -> None:
    async with topics.open(partitions=2) as log:
        epoch = log.epoch
    async with topics.open(partitions=7) as log:
        assert (log.epoch, log.partitions) == (epoch, 2)


async def test_many_creators_at_once_make_one_topic(topics: KafkaTopics) -> None:
    async def epoch() -> Epoch:
        async with topics.open() as log:
            return log.epoch

    epochs = await asyncio.gather(*[epoch() for _ in range(8)])
    assert len(set(epochs)) == 1
    async with admin_of(topics) as admin, asyncio.timeout(20):
        while [name for name in await admin.topics() if name.startswith(topics.prefix)] != [
            topic_name(f"{topics.prefix}.one", epochs[0])
        ]:
            await asyncio.sleep(0.1)  # the claim is on its way out


async def test_a_creator_that_died_half_way_is_helped_out(topics: KafkaTopics) -> None:
    async with admin_of(topics) as admin:
        claim = claim_name(f"{topics.prefix}.one", 1)
        await admin.create(claim, partitions=1, replicas=3, properties={"retention.ms": str(0x1234_5678)})
    async with topics.open() as log:
        assert log.epoch == Epoch(1, 0x1234_5678)


async def test_a_claim_that_was_left_behind_does_no_harm(topics: KafkaTopics) -> None:
    async with topics.open() as log:
        epoch = log.epoch
    async with admin_of(topics) as admin:
        claim = claim_name(f"{topics.prefix}.one", 1)
        await admin.create(claim, partitions=1, replicas=3, properties={"retention.ms": "7"})
    async with topics.open() as log:
        assert log.epoch == epoch


async def test_the_highest_ordinal_is_the_log(topics: KafkaTopics) -> None:
    async with topics.open() as log, admin_of(topics) as admin:
        assert log.epoch.ordinal == 1
        await log.append(0, events(0, 3), base=0)
        made = await asyncio.gather(
            *[make_epoch(admin, 2, LogSettings(partitions=4), topics.settings()) for _ in range(3)]
        )
        assert len(set(made)) == 1
    async with topics.open() as log:
        assert (log.epoch, log.partitions) == (made[0].epoch, 4)
        assert set((await log.ends()).values()) == {0}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("min.insync.replicas", "1", "must be 2 or more"),
        ("unclean.leader.election.enable", "true", "must be false"),
        ("retention.ms", "3600000", "must be -1"),
        ("retention.bytes", "1000000", "must be -1"),
        ("max.message.bytes", "1000000", "must be 2097152 or more"),
        ("message.timestamp.type", "CreateTime", "must be LogAppendTime"),
        ("cleanup.policy", "compact", "must be delete"),
    ],
)
async def test_a_weaker_topic_is_refused_unless_that_is_accepted_by_name(
    topics: KafkaTopics, name: str, value: str, said: str
) -> None:
    topic = topic_name(f"{topics.prefix}.one", Epoch(1, 5))
    async with admin_of(topics) as admin:
        await admin.create(topic, partitions=1, replicas=3, properties=STRONG | {name: value})
    with pytest.raises(StartError) as error:
        async with topics.open():
            pass
    assert topic in str(error.value)
    assert f"{name} is {value}, {said}" in str(error.value)
    if name in {"message.timestamp.type", "cleanup.policy"}:
        assert "accept_weaker" not in str(error.value)
        return
    async with topics.open(accept_weaker=[name]) as log:
        assert log.epoch == Epoch(1, 5)


async def test_fewer_copies_are_refused_unless_that_is_accepted_by_name(topics: KafkaTopics) -> None:
    topic = topic_name(f"{topics.prefix}.one", Epoch(1, 5))
    async with admin_of(topics) as admin:
        await admin.create(topic, partitions=1, replicas=1, properties=STRONG | {"min.insync.replicas": "1"})
    with pytest.raises(StartError) as error:
        async with topics.open():
            pass
    assert "replication.factor is 1, must be 3 or more" in str(error.value)
    with pytest.raises(StartError) as error:
        async with topics.open(accept_weaker=["replication.factor"]):
            pass
    assert "min.insync.replicas" in str(error.value)
    async with topics.open(accept_weaker=["replication.factor", "min.insync.replicas"]) as log:
        await log.append(0, events(0, 3), base=0)
        assert same(await read(log, 0), events(0, 3))


# --- waiting --------------------------------------------------------------------------------------


class Gate:
    """A port of ours in front of a broker: closed, silent, or open."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.is_silent = True

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(asyncio.CancelledError, OSError):
            if self.is_silent:
                await reader.read()
            else:
                there, back = await asyncio.open_connection(*self._target)
                await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
        writer.close()

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()


async def test_it_waits_for_a_cluster_says_what_is_missing_and_goes_on_by_itself(topics: KafkaTopics) -> None:
    host, _, port = parse_kafka_url(topics.url, KafkaSettings())[0].hosts[0].rpartition(":")
    gate = Gate((host, int(port)))
    await gate.listen()
    await gate.close()
    said: asyncio.Queue[str] = asyncio.Queue()
    opened = asyncio.Event()

    async def open_it() -> None:
        settings = topics.settings(request_timeout=0.5)
        hooks = KafkaHooks(waiting=said.put_nowait)
        url = f"kafka://127.0.0.1:{gate.port}"
        async with open_kafka_log(url, LogSettings(partitions=1), SystemClock(), kafka=settings, hooks=hooks) as log:
            await log.append(0, events(0, 1), base=0)
            opened.set()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(open_it())
        assert f"127.0.0.1:{gate.port}: connection refused" in await said.get()
        await gate.listen()
        assert f"127.0.0.1:{gate.port}: no answer in time" in await said.get()
        assert not opened.is_set()
        gate.is_silent = False
        await opened.wait()
    await gate.close()


async def test_waiting_can_be_given_up() -> None:
    said = asyncio.Event()

    async def open_it() -> None:
        hooks = KafkaHooks(waiting=lambda _: said.set())
        async with open_kafka_log("kafka://127.0.0.1:1", LogSettings(), SystemClock(), hooks=hooks):
            pass

    task = asyncio.create_task(open_it())
    async with asyncio.timeout(30):
        await said.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_port_that_is_not_kafkas_is_no_cluster() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    said: asyncio.Queue[str] = asyncio.Queue()

    async def open_it() -> None:
        hooks = KafkaHooks(waiting=said.put_nowait)
        kafka = KafkaSettings(request_timeout=0.5)
        async with open_kafka_log(f"kafka://127.0.0.1:{port}", LogSettings(), SystemClock(), kafka=kafka, hooks=hooks):
            pass

    task = asyncio.create_task(open_it())
    async with asyncio.timeout(30):
        assert f"127.0.0.1:{port}: " in await said.get()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    server.close()
