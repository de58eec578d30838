"""Events ↔ Kafka records. Pure.

A record's value is the event as structured CloudEvents JSON, byte for byte as `NewEvent.value`, so that any Kafka
consumer can read it; its key is the ordering key or none. Header ``content-type`` is that of the CloudEvents Kafka
binding; header ``cdrs`` is ours, big-endian::

    version (1) = 1 | kind (1) | spread (2) | data_at (4) | CRC-32 of the value (4)
    | epoch ordinal (4) | epoch random (4) | base (8) | accepted_ms (8) | floor_ms (8) | identity (20)

**Append time.** Brokers stamp records by their own clocks (``LogAppendTime``), so a change of the leader can set time
back. The append time of a record is therefore the largest stamp of its partition up to it. A reader need not have read
the partition from its beginning to know that: ``floor_ms`` is the append time that the appender had read up to, at
``base`` or later, so the running maximum of stamps and floors is exact for every record whose base the reader has read
from. For a record that is not void that is at most W before it: where judgement is exact, append times are.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Final, Protocol
from zlib import crc32

import msgspec

from shared.position import Epoch
from shared.records import DataKind, NewEvent, Record

HEADER: Final = "cdrs"
VERSION: Final = 1
CONTENT_TYPE: Final = ("content-type", b"application/cloudevents+json")
MAX_VALUE_BYTES: Final = 2 * 1024 * 1024
"""Longer values are not ours: what we write fits into a batch of the topic's ``max.message.bytes``."""
RECORD_OVERHEAD: Final = 192
"""Bytes of a record besides key and value, at most."""

_layout = struct.Struct(">BBHIIQqqq20s")
_pack = _layout.pack
_unpack = _layout.unpack
_LENGTH = _layout.size
_MAX_KIND = max(DataKind)

Headers = Sequence[tuple[str, bytes | None]]


class RawRecord(Protocol):
    """A record as the client hands it over."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...


class Cause(enum.StrEnum):
    """Why a record is not one of ours."""

    NO_HEADER = "no-header"
    BAD_HEADER = "bad-header"
    """It has another version or length, or does not belong to this value."""
    OTHER_EPOCH = "other-epoch"
    TOO_LARGE = "too-large"
    NOT_UTF8 = "not-utf8"
    NOT_JSON = "not-json"
    """Or not an object that names its stream."""
    UNREADABLE = "unreadable"
    """The client cannot parse it."""


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A record to be sent, unchanged however often."""

    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]


def encode(events: Sequence[NewEvent], *, epoch: Epoch, base: int, floor_ms: int) -> list[Outgoing]:
    """Events as records, in order."""
    number = _epoch_number(epoch)
    return [
        Outgoing(
            None if event.key is None else event.key.encode(),
            event.value,
            [
                CONTENT_TYPE,
                (
                    HEADER,
                    _pack(
                        VERSION,
                        event.kind,
                        event.spread,
                        event.data_at,
                        crc32(event.value),
                        number,
                        base,
                        event.accepted_ms,
                        floor_ms,
                        event.identity,
                    ),
                ),
            ],
        )
        for event in events
    ]


class _Envelope(msgspec.Struct):
    cdrsstream: str


_read_envelope = msgspec.json.Decoder(_Envelope).decode


class Foreign(msgspec.Struct, frozen=True):
    """A record that is not one of ours."""

    partition: int
    offset: int
    cause: Cause
    raw: bytes
    """Its value."""


class _NotOursError(Exception):
    def __init__(self, cause: Cause) -> None:
        self.cause = cause


class PartitionDecoder:
    """Reads a partition's records in offset order and keeps their append times from going back."""

    __slots__ = ("_epoch", "append_ms", "partition")

    def __init__(self, partition: int, epoch: Epoch) -> None:
        self.partition = partition
        self.append_ms = 0
        """Append time of the last record read; 0 before the first."""
        self._epoch = _epoch_number(epoch)

    def decode(self, raws: Sequence[RawRecord]) -> tuple[list[Record], list[Foreign]]:
        """Our records, and those that are not; both in order."""
        records: list[Record] = []
        foreign: list[Foreign] = []
        partition, epoch, append_ms = self.partition, self._epoch, self.append_ms
        for raw in raws:
            # every record of the log passes here: what is usual costs no call of a function in Python
            value, offset, key, stamp = raw.value, raw.offset, raw.key, raw.timestamp
            if stamp > append_ms:  # noqa: PLR1730
                append_ms = stamp
            try:
                headers = raw.headers
                # As we write them; anything else is looked at more closely.
                if len(headers) == 2 and headers[1][0] == HEADER and headers[0][0] != HEADER:
                    header = headers[1][1] or b""
                else:
                    header = _our_header(headers)
                if len(header) != _LENGTH or header[0] != VERSION or value is None:
                    raise _NotOursError(Cause.BAD_HEADER)
                _, kind, _, data_at, crc, theirs, base, accepted_ms, floor_ms, identity = _unpack(header)
                if theirs != epoch:
                    raise _NotOursError(Cause.OTHER_EPOCH)
                size = len(value)
                if size > MAX_VALUE_BYTES:
                    raise _NotOursError(Cause.TOO_LARGE)
                if not 0 <= base <= offset or kind > _MAX_KIND or data_at >= size or crc != crc32(value):
                    raise _NotOursError(Cause.BAD_HEADER)
                if not value.isascii():
                    value.decode()  # the JSON decoder leaves the strings that it skips unread
                stream = _read_envelope(value).cdrsstream
                text = None if key is None else key.decode()
            except (_NotOursError, UnicodeDecodeError, msgspec.MsgspecError) as error:
                foreign.append(Foreign(partition, offset, _cause_of(error), value or b""))
                continue
            if floor_ms > append_ms:  # noqa: PLR1730
                append_ms = floor_ms
            records.append(
                Record(partition, offset, append_ms, identity, stream, text, value, data_at, kind, accepted_ms, base)
            )
        self.append_ms = append_ms
        return records, foreign


def _our_header(headers: Headers) -> bytes:
    found = [value for name, value in headers if name == HEADER]
    if len(found) > 1:
        raise _NotOursError(Cause.BAD_HEADER)
    if not found:
        raise _NotOursError(Cause.NO_HEADER)
    return found[0] or b""


def _cause_of(error: Exception) -> Cause:
    if isinstance(error, _NotOursError):
        return error.cause
    return Cause.NOT_UTF8 if isinstance(error, UnicodeDecodeError) else Cause.NOT_JSON


def _epoch_number(epoch: Epoch) -> int:
    return epoch.ordinal << 32 | epoch.random
