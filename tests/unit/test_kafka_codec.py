"""Events ↔ Kafka records, and reading what others wrote into the topic. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from new_events import as_sent, event

from shared.backends.kafka.codec import (
    CONTENT_TYPE,
    HEADER,
    MAX_VALUE_BYTES,
    Cause,
    Outgoing,
    PartitionDecoder,
    encode,
)
from shared.position import Epoch
from shared.records import NewEvent

EPOCH = Epoch(3, 0xFFFF_FFFF)


@dataclass
class Raw:
    offset: int
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    key: bytes | None = None
    timestamp: int = 1000


def raw(outgoing: Outgoing, offset: int = 7, timestamp: int = 1000) -> Raw:
    return Raw(offset, outgoing.value, list(outgoing.headers), outgoing.key, timestamp)


def sent(*events: NewEvent, base: int = 5, floor_ms: int = 0, epoch: Epoch = EPOCH) -> list[Outgoing]:
    return encode(events, epoch=epoch, base=base, floor_ms=floor_ms)


def test_an_event_comes_back_as_it_was_sent() -> None:
    given = [event("a", key="ü", data='"ü"'.encode()), event("b", stream="other.stream"), event("c", data=b"{}")]
    records, foreign = PartitionDecoder(4, EPOCH).decode([raw(each, 7 + at) for at, each in enumerate(sent(*given))])
    assert [as_sent(record) for record in records] == given
    assert [(record.partition, record.offset, record.base) for record in records] == [(4, 7, 5), (4, 8, 5), (4, 9, 5)]
    assert not foreign


def test_any_consumer_can_read_it() -> None:
    (outgoing,) = sent(event("a", key="k"))
    assert outgoing.key == b"k"
    assert outgoing.value == event("a").value
    assert outgoing.headers[0] == ("content-type", b"application/cloudevents+json")
    assert sent(event("a"))[0].key is None


def _broken() -> list[tuple[str, Raw, Cause]]:
    good = sent(event("a", data='"ü"'.encode()))[0]
    header = good.headers[1][1]
    other = event("b").value
    not_utf8, not_json = event("a", data=b'"\xff"'), event("a", data=b"{")
    no_stream = NewEvent(b"i" * 20, "s", None, b'{"id":"a"}', 0, 0, 0)
    large = event("a", data=b'"' + b"x" * MAX_VALUE_BYTES + b'"')
    return [
        ("no header", Raw(7, good.value, []), Cause.NO_HEADER),
        ("only the content type", Raw(7, good.value, [CONTENT_TYPE]), Cause.NO_HEADER),
        ("an empty header", Raw(7, good.value, [CONTENT_TYPE, (HEADER, None)]), Cause.BAD_HEADER),
        ("a short header", Raw(7, good.value, [(HEADER, header[:-1])]), Cause.BAD_HEADER),
        ("a later version", Raw(7, good.value, [(HEADER, b"\x02" + header[1:])]), Cause.BAD_HEADER),
        ("two headers", Raw(7, good.value, [(HEADER, header), (HEADER, header)]), Cause.BAD_HEADER),
        ("another event's header", Raw(7, other, [CONTENT_TYPE, (HEADER, header)]), Cause.BAD_HEADER),
        ("no value", Raw(7, None, [CONTENT_TYPE, (HEADER, header)]), Cause.BAD_HEADER),
        ("a base that is to come", raw(sent(event("a"), base=8)[0]), Cause.BAD_HEADER),
        ("another epoch", raw(sent(event("a"), epoch=Epoch(3, 1))[0]), Cause.OTHER_EPOCH),
        ("not UTF-8", raw(sent(not_utf8)[0]), Cause.NOT_UTF8),
        ("a key that is not", Raw(7, good.value, list(good.headers), b"\xff"), Cause.NOT_UTF8),
        ("not JSON", raw(sent(not_json)[0]), Cause.NOT_JSON),
        ("no stream", raw(sent(no_stream)[0]), Cause.NOT_JSON),
        ("too large", raw(sent(large)[0]), Cause.TOO_LARGE),
    ]


@pytest.mark.parametrize(("record", "cause"), [pytest.param(r, c, id=name) for name, r, c in _broken()])
def test_what_is_not_ours_is_told_apart(record: Raw, cause: Cause) -> None:
    before, after = sent(event("before"), event("after"))
    decoder = PartitionDecoder(1, EPOCH)
    records, foreign = decoder.decode([raw(before, 6), record, raw(after, 8)])
    assert [each.offset for each in records] == [6, 8]
    assert [(each.partition, each.offset, each.cause, each.raw) for each in foreign] == [
        (1, 7, cause, record.value or b"")
    ]


def test_any_damage_to_a_header_is_found_or_harmless() -> None:
    rng = random.Random(3)
    (good,) = sent(event("a", data=b'{"a": [1, 2]}'))
    for _ in range(2000):
        header = bytearray(good.headers[1][1])
        header[rng.randrange(len(header))] ^= 1 << rng.randrange(8)
        records, foreign = PartitionDecoder(0, EPOCH).decode(
            [Raw(7, good.value, [CONTENT_TYPE, (HEADER, bytes(header))])]
        )
        assert len(records) + len(foreign) == 1


@dataclass
class Broker:
    """A partition whose leaders have clocks of their own."""

    rng: random.Random
    log: list[Raw] = field(default_factory=list)

    def append(self, base: int, floor_ms: int) -> None:
        offset = len(self.log)
        (outgoing,) = sent(event(str(offset)), base=base, floor_ms=floor_ms)
        self.log.append(raw(outgoing, offset, offset * 10 + self.rng.choice((0, 300, 5000))))


def test_append_times_never_go_back_and_depend_on_the_log_alone() -> None:
    """Readers that begin anywhere agree with the one that has read everything, W records after they began."""
    window, rng = 20, random.Random(11)
    broker, appender = Broker(rng), PartitionDecoder(0, EPOCH)
    read = 0
    for _ in range(400):
        # the appender's tail is somewhere behind the end, but never more than the window
        fresh = rng.randrange(max(read, len(broker.log) - window + 1), len(broker.log) + 1)
        appender.decode(broker.log[read:fresh])
        read = fresh
        broker.append(read, appender.append_ms)
    whole = [record.append_ms for record in PartitionDecoder(0, EPOCH).decode(broker.log)[0]]
    assert whole == sorted(whole)
    for start in range(0, 380, 7):
        part = [record.append_ms for record in PartitionDecoder(0, EPOCH).decode(broker.log[start:])[0]]
        assert part[window:] == whole[start + window :]
