"""``kafka://`` URLs and the names of topics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from shared.backends.kafka import topics
from shared.backends.kafka.address import parse_kafka_url
from shared.backends.kafka.client import BATCH_BYTES
from shared.backends.kafka.codec import Outgoing
from shared.backends.kafka.topics import EpochTopic, check_settings, find_epoch, topic_name
from shared.backends.kafka.writing import cut
from shared.errors import StartError
from shared.position import Epoch
from shared.settings import KafkaSettings


def test_hosts_and_options() -> None:
    address, settings = parse_kafka_url(
        "kafka://us%40er:p%3Aw@a:1,b,[::1]:3/?accept_weaker=retention.ms,retention.bytes&paranoid=true&tls=true",
        KafkaSettings(append_timeout=4),
    )
    assert list(address.hosts) == ["a:1", "b:9092", "[::1]:3"]
    assert (address.username, address.password, address.mechanism) == ("us@er", "p:w", "SCRAM-SHA-512")
    assert address.protocol == "SASL_SSL"
    assert settings == KafkaSettings(append_timeout=4, paranoid=True, accept_weaker=["retention.ms", "retention.bytes"])
    assert "p:w" not in f"{address!r}{address}"


def test_without_a_user_there_are_no_credentials() -> None:
    address, settings = parse_kafka_url("kafka://a:1", KafkaSettings())
    assert address.protocol == "PLAINTEXT"
    assert settings == KafkaSettings()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://a:1", "kafka://"),
        ("kafka:a:1", "kafka://"),
        ("kafka://[::1", "host:port"),
        ("kafka://a:1#b", "?options"),
        ("kafka://", "host:port"),
        ("kafka://a:1,,b:2", "host:port"),
        ("kafka://a:", "host:port"),
        ("kafka://a:x", "host:port"),
        ("kafka://a:70000", "out of range"),
        ("kafka://a b:1", "host:port"),
        ("kafka://a:1/topic", "?options"),
        ("kafka://a:1?nonsense=1", "nonsense"),
        ("kafka://a:1?tls=maybe", "tls"),
        ("kafka://a:1?tls=true&tls=true", "twice"),
        ("kafka://a:1?sasl=PLAIN", "user"),
        ("kafka://u:p@a:1?sasl=GSSAPI", "PLAIN"),
        ("kafka://a:1?append_timeout=soon", "append_timeout"),
    ],
)
def test_what_is_wrong_is_named(url: str, said: str) -> None:
    with pytest.raises(StartError) as error:
        parse_kafka_url(url, KafkaSettings())
    assert "setting log.url" in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["everything", "cleanup.policy", "message.timestamp.type", "flush.messages"])
def test_only_what_may_be_weaker_is_accepted(name: str) -> None:
    with pytest.raises(StartError, match="accept_weaker"):
        check_settings(KafkaSettings(accept_weaker=[name]))


def test_the_latest_epoch_wins() -> None:
    names = [
        "x.9-00000000",
        "x.10-0000000b",
        "x.10-0000000a",
        "x.11-xyz",
        "x.claim-12",
        "y.12-00000000",
        "x.012-00000000",
    ]
    assert find_epoch("x", names) == Epoch(10, 10)
    assert find_epoch("z", names) is None
    assert topic_name("x", Epoch(10, 10)) == "x.10-0000000a"


def test_batches_are_cut_by_size_and_leave_nothing_out() -> None:
    sizes = [10, BATCH_BYTES // 2, BATCH_BYTES // 2, 3, BATCH_BYTES + 5, 1, 1]
    records = [Outgoing(None, b"x" * size, []) for size in sizes]
    pieces = list(cut(records))
    assert [len(record.value) for piece in pieces for record in piece] == sizes
    assert all(len(piece) == 1 or sum(len(record.value) for record in piece) <= BATCH_BYTES for piece in pieces)
    assert len(pieces) == 4
    assert list(cut([])) == []


async def test_a_topic_that_a_broker_does_not_know_yet_is_waited_for() -> None:
    """It was made a moment ago, by another node: that is no topic without copies."""
    admin: Any = SimpleNamespace(topics=mock.AsyncMock(return_value={}))
    topic = EpochTopic("cdrs.1-00000007", Epoch(1, 7), 12)
    with pytest.raises(ConnectionError, match="not every broker knows"):
        await topics._check(admin, topic, KafkaSettings())  # pyright: ignore[reportPrivateUsage]
