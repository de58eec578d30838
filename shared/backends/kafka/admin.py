"""What is asked of the cluster before the log is open: which topics there are, what they are like; making them."""

# mypy: disable-error-code="import-untyped"
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.conn import create_conn
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    SaslAuthenticationFailed,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
    for_code,
)

from shared.backends.kafka.address import SETTING, KafkaAddress
from shared.backends.kafka.client import CLIENT_ERRORS, client_options, describe, within
from shared.errors import StartError
from shared.settings import KafkaSettings

TRIM_ATTEMPTS = 5
"""How often a partition is trimmed before it is left to the next time; all of them within the timeout of one call."""

_AUTHENTICATION = (SaslAuthenticationFailed, UnsupportedSaslMechanismError)
_AUTHORIZATION = (ClusterAuthorizationFailedError, TopicAuthorizationFailedError)


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic, as one broker knows it."""

    partitions: int
    replicas: int
    """Copies of the partition that has the fewest."""
    has_leaders: bool
    """Whether every partition can be written to."""


class Admin:
    """One connection to the cluster for a few questions. All methods raise `CLIENT_ERRORS`, or `StartError` for want of
    permission."""

    def __init__(self, client: AIOKafkaAdminClient, timeout: float) -> None:
        self._client = client
        self._timeout = timeout

    async def topics(self) -> dict[str, TopicInfo]:
        """All topics. One broker's picture: it knows what it knows in the order in which the cluster decided it."""
        async with asyncio.timeout(self._timeout):
            found = await self._client.describe_topics()
        return {topic["topic"]: _info(topic["partitions"]) for topic in found}

    async def brokers(self) -> int:
        """How many brokers are alive."""
        async with asyncio.timeout(self._timeout):
            return len((await self._client.describe_cluster())["brokers"])

    async def create(self, name: str, *, partitions: int, replicas: int, properties: Mapping[str, str]) -> bool:
        """Make a topic; False where it exists already."""
        topic = NewTopic(name, partitions, replicas, topic_configs=dict(properties))
        async with asyncio.timeout(self._timeout):
            response: Any = await self._client.create_topics([topic])
        return not _failed(response.topic_errors, TopicAlreadyExistsError)

    async def delete(self, name: str) -> None:
        """Remove a topic, if there is one."""
        async with asyncio.timeout(self._timeout):
            response: Any = await self._client.delete_topics([name])
        _failed(response.topic_error_codes, UnknownTopicOrPartitionError)

    async def trim(self, name: str, below: Mapping[int, int]) -> None:
        """Delete the records of these partitions below these offsets; of those that can be reached at least, as each is
        asked for by itself (one without a leader is refused together with all that are named beside it)."""
        asked = [self._trim(TopicPartition(name, partition), offset) for partition, offset in below.items()]
        failed = [each for each in await asyncio.gather(*asked, return_exceptions=True) if each is not None]
        if failed:
            raise failed[0]

    async def _trim(self, partition: TopicPartition, offset: int) -> None:
        wanted = {partition: RecordsToDelete(offset)}
        async with asyncio.timeout(self._timeout):
            for left in reversed(range(TRIM_ATTEMPTS)):
                try:
                    await self._client.delete_records(wanted, timeout_ms=int(self._timeout * 1000))
                    return
                except (KafkaConnectionError, NodeNotReadyError):
                    if not left:  # the first question goes to any broker, which may be the one that is down
                        raise

    async def properties(self, name: str) -> dict[str, str]:
        """A topic's properties, those by default included."""
        async with asyncio.timeout(self._timeout):
            responses: list[Any] = await self._client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
        (response,) = responses
        ((code, message, _, _, entries),) = response.resources
        _failed([(name, code, message)], None)
        return {entry[0]: entry[1] or "" for entry in entries}


@asynccontextmanager
async def open_admin(address: KafkaAddress, settings: KafkaSettings) -> AsyncGenerator[Admin]:
    """Connect. Raises `ConnectionError` that says what each broker answered, or `StartError` where it refused us."""
    timeout = settings.request_timeout * 2 + 1
    client = AIOKafkaAdminClient(**client_options(address, settings))
    try:
        try:
            async with asyncio.timeout(timeout):
                await client.start()
        except CLIENT_ERRORS as error:
            raise ConnectionError(await diagnose(address, settings)) from error
        yield Admin(client, timeout)
    finally:
        await within(1.0, client.close())


async def diagnose(address: KafkaAddress, settings: KafkaSettings) -> str:
    """Why none of the brokers could be used. Raises `StartError` where waiting will not help."""
    answers = await asyncio.gather(*[_probe(host, address, settings) for host in address.hosts])
    return "; ".join(f"{host}: {answer}" for host, answer in zip(address.hosts, answers, strict=True))


async def _probe(host: str, address: KafkaAddress, settings: KafkaSettings) -> str:
    name, _, port = host.rpartition(":")
    options = client_options(address, settings)
    for unused in ("bootstrap_servers", "retry_backoff_ms", "metadata_max_age_ms"):
        del options[unused]
    try:
        async with asyncio.timeout(settings.request_timeout):
            connection = await create_conn(name.strip("[]"), int(port), **options)
    except _AUTHENTICATION as error:
        raise StartError(
            f"setting {SETTING}: {host} refused the credentials of {address.username or 'nobody'!r} "
            f"({address.mechanism or 'no sasl'}): {describe(error)}"
        ) from error
    except IllegalSaslStateError as error:
        raise StartError(
            f"setting {SETTING}: {host} takes no credentials at this port, and the URL has those of "
            f"{address.username!r}: leave them out, or name the port that asks for them"
        ) from error
    except TimeoutError:
        return "no answer in time"
    except ConnectionRefusedError:
        return "connection refused"
    except (KafkaError, OSError, ValueError) as error:
        return describe(error)
    connection.close()
    return "answers"


def _info(partitions: list[dict[str, Any]]) -> TopicInfo:
    return TopicInfo(
        len(partitions),
        min((len(each["replicas"]) for each in partitions), default=0),
        bool(partitions) and all(each["leader"] >= 0 and not each["error_code"] for each in partitions),
    )


def _failed(answers: list[tuple[Any, ...]], harmless: type[KafkaError] | None) -> bool:
    """Whether the only answer is the harmless error; raises any other one."""
    ((name, code, *message),) = answers
    if not code:
        return False
    error = for_code(code)
    if harmless is not None and error is harmless:
        return True
    text = f"{name}: {message[0] if message and message[0] else error.__name__}"
    if error in _AUTHORIZATION:
        raise StartError(f"setting {SETTING}: no permission: {text}")
    raise error(text)
