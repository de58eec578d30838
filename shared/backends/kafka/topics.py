"""One topic per epoch: its name, its properties, and how several processes come to make just one.

The events of epoch 1-9f3a22c1 are in topic ``cdrs.events.1-9f3a22c1``; the topic with the highest ordinal is the log.

**Making one.** The random bits must be new ones and yet the same for all who find no topic at the same time. The
cluster makes a topic of a given name only once, so the first to make ``cdrs.events.claim-1`` decides: a property of
that topic (``retention.ms``; nothing is ever written to it) holds the random bits. Whoever sees the claim makes the
topic that it asks for, and then removes the claim. All decide by pictures of single brokers, and a broker learns of
topics in the order in which they were made; so who sees a claim that was made after the topic sees the topic as well,
and prefers it. A process may therefore stop for any time between any two steps, or for ever.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from shared.backends.kafka.address import SETTING, KafkaAddress
from shared.backends.kafka.admin import Admin, TopicInfo, diagnose, open_admin
from shared.backends.kafka.client import CLIENT_ERRORS, describe
from shared.errors import StartError
from shared.position import Epoch
from shared.settings import KafkaSettings, LogSettings

REPLICAS: Final = 3
IN_SYNC: Final = 2
MAX_BATCH_BYTES: Final = 2 * 1024 * 1024
CHANGE_POLL: Final = 0.1
"""Seconds between two looks at what the cluster is about to do."""
CHANGE_TIMEOUT: Final = 15.0
"""Seconds for a change to show at the broker asked."""
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 2.0

_CLAIM_PROPERTY: Final = "retention.ms"
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,200}")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EpochTopic:
    """The topic that is the log."""

    name: str
    epoch: Epoch
    partitions: int


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a property must be."""

    name: str
    wanted: str
    meets: Callable[[str], bool]
    reason: str
    is_fixed: bool = False
    """Nothing works without it, so it cannot be accepted weaker."""


def requirements(settings: KafkaSettings) -> list[Requirement]:
    """The properties of a topic that loses nothing."""
    found = [
        Requirement("replication.factor", f"{REPLICAS} or more", _at_least(REPLICAS), "copies of each event"),
        Requirement("min.insync.replicas", f"{IN_SYNC} or more", _at_least(IN_SYNC), "copies before an answer"),
        Requirement(
            "unclean.leader.election.enable", "false", _is("false"), "a broker that lags behind must never lead"
        ),
        Requirement("retention.ms", "-1", _is("-1"), "events leave by cdrs's own retention only"),
        Requirement("retention.bytes", "-1", _is("-1"), "events leave by cdrs's own retention only"),
        Requirement("max.message.bytes", f"{MAX_BATCH_BYTES} or more", _at_least(MAX_BATCH_BYTES), "the largest event"),
        Requirement("message.timestamp.type", "LogAppendTime", _is("LogAppendTime"), "the log sets the time", True),
        Requirement("cleanup.policy", "delete", _is("delete"), "compaction would take events away", True),
    ]
    if settings.paranoid:
        found.append(Requirement("flush.messages", "1", _is("1"), "on the disk before the answer (kafka.paranoid)"))
    return found


def check_settings(settings: KafkaSettings) -> None:
    """Raise `StartError` where a setting makes no sense."""
    known = [each.name for each in requirements(settings) if not each.is_fixed]
    for name in settings.accept_weaker:
        if name not in known:
            raise StartError(
                f"setting kafka.accept_weaker: {name[:60]!r} is no property that may be weaker; there are "
                + ", ".join(known)
            )
    if not _NAME.fullmatch(settings.topic):
        raise StartError("setting kafka.topic: a topic's name is made of letters, digits, '.', '_' and '-'")


def find_epoch(prefix: str, names: Iterable[str]) -> Epoch | None:
    """The highest epoch among the topics of these names. Two of the same ordinal were not both made by us; then the
    smaller random bits win, so that all choose alike."""
    pattern = re.compile(re.escape(prefix) + r"\.([1-9][0-9]{0,8}-[0-9a-f]{8})")
    epochs = [Epoch.parse(match[1]) for name in names if (match := pattern.fullmatch(name))]
    return min(epochs, key=lambda epoch: (-epoch.ordinal, epoch.random), default=None)


def topic_name(prefix: str, epoch: Epoch) -> str:
    """The topic of an epoch."""
    return f"{prefix}.{epoch}"


def claim_name(prefix: str, ordinal: int) -> str:
    """The claim to make the topic of this ordinal."""
    return f"{prefix}.claim-{ordinal}"


async def open_topic(
    address: KafkaAddress, log: LogSettings, settings: KafkaSettings, waiting: Callable[[str], None]
) -> EpochTopic:
    """Find the topic of the latest epoch, or make that of the first.

    Waits for as long as the cluster cannot be used, telling ``waiting`` what is missing whenever that changes; end it
    by cancelling. Raises `StartError` where waiting cannot help.
    """
    check_settings(settings)
    pause, told = FIRST_PAUSE, ""
    while True:
        try:
            async with open_admin(address, settings) as admin:
                return await _find_or_make(admin, log, settings)
        except ConnectionError as error:
            detail = str(error)
        except CLIENT_ERRORS as error:
            _logger.debug("%s", describe(error))
            detail = f"{type(error).__name__} ({await diagnose(address, settings)})"
        if detail != told:
            told = detail
            _logger.warning("waiting for Kafka at %s: %s", address, detail)
            waiting(detail)
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


async def find_topic(address: KafkaAddress, settings: KafkaSettings) -> EpochTopic:
    """The topic of the latest epoch. Makes none, waits for nothing. Raises `StartError` that says what is missing."""
    topic = await latest_topic(address, settings)
    if topic is None:
        raise StartError(f"Kafka at {address} has no topic {settings.topic}.…: the first node that starts makes it")
    return topic


async def latest_topic(address: KafkaAddress, settings: KafkaSettings) -> EpochTopic | None:
    """The topic of the latest epoch, or None. Raises `StartError` where the brokers cannot be asked."""
    try:
        async with open_admin(address, settings) as admin:
            topics = await admin.topics()
    except CLIENT_ERRORS as error:
        raise _unasked(address, error) from error
    epoch = find_epoch(settings.topic, topics)
    if epoch is None:
        return None
    name = topic_name(settings.topic, epoch)
    return EpochTopic(name, epoch, topics[name].partitions)


async def new_topic(address: KafkaAddress, log: LogSettings, settings: KafkaSettings, ordinal: int) -> EpochTopic:
    """Make the topic of this ordinal, with as many partitions as ``log`` says. Raises `StartError`."""
    try:
        async with open_admin(address, settings) as admin:
            return await make_epoch(admin, ordinal, log, settings)
    except CLIENT_ERRORS as error:
        raise _unasked(address, error) from error


def _unasked(address: KafkaAddress, error: BaseException) -> StartError:
    detail = str(error) if isinstance(error, ConnectionError) else describe(error)
    return StartError(f"setting {SETTING}: Kafka at {address} cannot be asked: {detail}")


async def make_epoch(admin: Admin, ordinal: int, log: LogSettings, settings: KafkaSettings) -> EpochTopic:
    """The topic of this ordinal or a higher one; made if there is none. Raises `CLIENT_ERRORS`, and may be repeated."""
    prefix, claim = settings.topic, claim_name(settings.topic, ordinal)
    deadline = asyncio.get_running_loop().time() + CHANGE_TIMEOUT
    while asyncio.get_running_loop().time() < deadline:
        topics = await admin.topics()
        epoch = find_epoch(prefix, topics)
        if epoch is not None and epoch.ordinal >= ordinal:
            if claim in topics:
                await _remove(admin, claim)
            info = topics[topic_name(prefix, epoch)]
            if info.has_leaders:
                return EpochTopic(topic_name(prefix, epoch), epoch, info.partitions)
        elif claim in topics:
            await _make(admin, topic_name(prefix, Epoch(ordinal, await _claimed(admin, claim))), log, settings)
        else:
            replicas, _ = await _copies(admin, settings)
            value = {_CLAIM_PROPERTY: str(secrets.randbits(32))}
            await admin.create(claim, partitions=1, replicas=replicas, properties=value)
        await asyncio.sleep(CHANGE_POLL)
    raise TimeoutError("the topic does not get leaders")


async def _find_or_make(admin: Admin, log: LogSettings, settings: KafkaSettings) -> EpochTopic:
    topic = await make_epoch(admin, 1, log, settings)
    await _check(admin, topic, settings)
    return topic


async def _make(admin: Admin, name: str, log: LogSettings, settings: KafkaSettings) -> None:
    replicas, in_sync = await _copies(admin, settings)
    properties = {
        "min.insync.replicas": str(in_sync),
        "message.timestamp.type": "LogAppendTime",
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "max.message.bytes": str(MAX_BATCH_BYTES),
        "unclean.leader.election.enable": "false",
    }
    if settings.paranoid:
        properties["flush.messages"] = "1"
    if await admin.create(name, partitions=log.partitions, replicas=replicas, properties=properties):
        _logger.info("made topic %s with %d partitions, %d copies of each", name, log.partitions, replicas)


async def _claimed(admin: Admin, claim: str) -> int:
    return int((await admin.properties(claim))[_CLAIM_PROPERTY]) & 0xFFFF_FFFF


async def _remove(admin: Admin, claim: str) -> None:
    try:
        await admin.delete(claim)
    except (StartError, *CLIENT_ERRORS) as error:
        _logger.warning("topic %s is not needed any more but cannot be removed: %s", claim, describe(error))


async def _copies(admin: Admin, settings: KafkaSettings) -> tuple[int, int]:
    """How many copies a new topic gets, and how many of them before an answer."""
    brokers = await admin.brokers()
    if "replication.factor" in settings.accept_weaker:
        replicas = min(REPLICAS, brokers)
    elif brokers < REPLICAS:
        raise ConnectionError(
            f"{brokers} of {REPLICAS} brokers are there, too few for a new topic (a set-up that shall have fewer names "
            "replication.factor and min.insync.replicas in setting kafka.accept_weaker)"
        )
    else:
        replicas = REPLICAS
    return replicas, min(IN_SYNC, replicas) if "min.insync.replicas" in settings.accept_weaker else IN_SYNC


async def _check(admin: Admin, topic: EpochTopic, settings: KafkaSettings) -> None:
    info: Mapping[str, TopicInfo] = await admin.topics()
    if topic.name not in info:  # another broker answers this time
        raise ConnectionError(f"topic {topic.name} is new, and not every broker knows of it yet")
    found = await admin.properties(topic.name)
    found["replication.factor"] = str(info[topic.name].replicas)
    weak = [each for each in requirements(settings) if not each.meets(found.get(each.name, ""))]
    accepted = [each for each in weak if each.name in settings.accept_weaker and not each.is_fixed]
    refused = [each for each in weak if each not in accepted]
    if accepted:
        names = ", ".join(f"{each.name}={found.get(each.name, '')}" for each in accepted)
        _logger.warning("topic %s is weaker than it should be, as accepted: %s", topic.name, names)
    if refused:
        raise StartError(_refusal(topic, refused, found))


def _refusal(topic: EpochTopic, refused: Iterable[Requirement], found: Mapping[str, str]) -> str:
    lines = [f"setting {SETTING}: topic {topic.name} is weaker than events that must not be lost need:"]
    for each in refused:
        advice = "" if each.is_fixed else f", or name {each.name} in setting kafka.accept_weaker"
        lines.append(
            f"  {each.name} is {found.get(each.name, '(not set)')}, must be {each.wanted} ({each.reason}): "
            f"change it with kafka-configs{advice}"
        )
    return "\n".join(lines)


def _at_least(least: int) -> Callable[[str], bool]:
    return lambda text: text.isdigit() and int(text) >= least


def _is(wanted: str) -> Callable[[str], bool]:
    return lambda text: text == wanted
