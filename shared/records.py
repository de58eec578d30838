"""What moves between gateway, node and log. Plain frozen structures; no I/O.

All of them are `msgspec` structs in array form, so one codec (`shared.wire`) carries them between processes and a new
field can be appended without breaking the other side.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from functools import lru_cache

import msgspec

from shared.position import Epoch


class DataKind(enum.IntEnum):
    """What stands in the ``data`` member of a stored CloudEvent."""

    NONE = 0
    JSON = 1
    """Any JSON value, byte for byte as sent (white space around it removed)."""
    TEXT = 2
    """A JSON string that holds text of a ``text/*`` content type."""
    BASE64 = 3
    """``data_base64``: a JSON string of base64."""


class NewEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An event on its way into the log."""

    identity: bytes
    """`identity_of` (stream, source, id): 20 bytes."""
    stream: str
    key: str | None
    """The ordering key, or None."""
    value: bytes
    """The whole CloudEvent as one line of JSON, ``data`` last. What subscribers get."""
    data_at: int
    """Index in ``value`` of the first byte of the data; 0 where there is none."""
    kind: int
    """A `DataKind`."""
    accepted_ms: int
    """When the gateway took it, milliseconds since 1970."""
    spread: int = 1
    """The spread of the stream by which the gateway routed it."""
    fresh: bool = False
    """The id was made by the server for this very attempt, so nobody can have stored it before."""


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A record of the log, at its offset."""

    partition: int
    offset: int
    append_ms: int
    """Append time: set by the log, never decreasing within a partition, milliseconds since 1970."""
    identity: bytes
    stream: str
    key: str | None
    value: bytes
    data_at: int
    kind: int
    accepted_ms: int
    base: int = 0
    """The offset that the appending node's tail had reached when it looked the identity up and found it absent."""


class LogBatch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Consecutive records of one partition, as a tail read them. Nothing between ``start`` and ``next`` is left out."""

    partition: int
    start: int
    next: int
    records: list[Record]


class ForeignRecord(msgspec.Struct, frozen=True):
    """Something in the log that none of our processes wrote, or that was damaged: it is skipped and told of."""

    partition: int
    offset: int
    cause: str
    """Why it is not one of ours; a word out of a small fixed set."""
    raw: bytes
    """Its bytes, as far as they could be told from those around it."""


class FeedBatch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The visible records of one partition in [start, next). Offsets that are missing are void or duplicates."""

    partition: int
    start: int
    next: int
    records: list[Record]
    missing: list[tuple[int, int]] = []
    """Damage: ranges of offsets therein that history must hold and does not, so nobody knows what they were."""
    deleted: list[tuple[int, int]] = []
    """Ranges of offsets therein that were deleted on purpose; none of it is in the batch."""


class Duplicate(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The identity is in the log already, at this place."""

    partition: int
    offset: int
    append_ms: int
    same_body: bool
    """Whether value and ordering key are those of the event that was refused as its copy."""


Entry = Duplicate | int | None
"""What an append made of an event: a `Duplicate` = its identity was there before, and nothing was written; else it is
in the log, at this offset, or where the log did not tell (None)."""


class Settlement(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How one event of a handoff ended. Either stored (or found stored) at an offset, or refused with a problem."""

    partition: int = -1
    offset: int = -1
    append_ms: int = 0
    duplicate: bool = False
    problem: str = ""
    """Name of the error class's problem type; empty where the event is stored."""
    detail: str = ""
    window_only: bool = False
    """The store was away: that the event is no copy was looked up in the node's memory alone."""


class FormerEpoch(msgspec.Struct, frozen=True, array_like=True):
    """An earlier incarnation of a log, as far as this one goes on with it."""

    epoch: Epoch
    stops: dict[int, int]
    """Partition → what it had below this offset stands here at the same offset."""


class NodeInfo(msgspec.Struct, frozen=True, array_like=True):
    """What a node says of itself and its log when a gateway connects."""

    node: str
    incarnation: str
    epoch: Epoch
    partitions: int
    troubles: dict[str, str] = {}
    """What the node lacks although it serves: name → what was found. Empty as a rule."""
    former: list[FormerEpoch] = []
    """Earlier incarnations of the log."""
    strained: list[int] = []
    """Partitions that the node would rather see served by others for now. A hint: it takes them all the same."""


class StreamInfo(msgspec.Struct, frozen=True, array_like=True):
    """A stream's settings and counts."""

    name: str
    spread: int
    created_ms: int
    events: int = 0
    """Visible events stored (kept by the store)."""
    last_ms: int = 0
    """Append time of the last event; 0 where there is none."""
    last: dict[int, int] = {}
    """Partition → offset of the last event."""


class PageQuery(msgspec.Struct, frozen=True, array_like=True):
    """A question for history: visible records of one partition in [start, stop)."""

    partition: int
    start: int
    stop: int
    limit: int
    """At most this many records."""
    max_bytes: int
    """Stop after this many bytes of values (the record that crosses the bound is still part of the page)."""
    streams: list[str] | None = None
    """Only these streams (exact names); None = all."""
    backwards: bool = False
    """Newest first, going down from stop."""


class HistoryPage(msgspec.Struct, frozen=True, array_like=True):
    """An answer to a `PageQuery`."""

    records: list[Record]
    """In the order asked for."""
    next: int
    """Forwards: everything of the asked streams in [start, next) is in the page; == stop when the range is exhausted.
    Backwards: everything in [next, stop) is; == start when exhausted."""
    missing: list[tuple[int, int]] = []
    """Damage: ranges of offsets covered by this page that the store must hold and does not, ascending. They may have
    held anything, also where certain streams were asked for."""
    deleted: list[tuple[int, int]] = []
    """Ranges of offsets covered by this page that were deleted on purpose, ascending; none of it is in the page."""


class Expiry(msgspec.Struct, frozen=True):
    """What retention deletes. Times are milliseconds since 1970."""

    now_ms: int
    before_ms: int
    """Events appended before this time go; 0: none for its age."""
    max_bytes: int
    """The oldest events of all go beyond so many bytes; 0: none for their size."""
    until_ms: int
    """Until when the identities of what is deleted now are remembered."""


_SEPARATOR = b"\x00"
IDENTITY_BYTES = 20
_TIMED = 15
"""Characters of a UUID up to its version, before which its time stands."""


def identity_of(stream: str, source: str, event_id: str) -> bytes:
    """The identity's hash: 12 bytes of (stream, id), then 8 of the source.

    All sources that used an id in a stream share a prefix, so one index finds an event with or without its source. Of
    a UUID of version 7 the first two bytes are its time, in steps of 64 ms that come round after 70 minutes: events of
    the same moment stand together in every index, which then writes a page for many of them and not one for each.
    """
    return identity_prefix(stream, event_id) + _source_hash(source)


def identities_of(stream: str, source: str, event_ids: Iterable[str]) -> list[bytes]:
    """`identity_of` each, for half the price."""
    begin, end = _stream_hash(stream).copy, _source_hash(source)
    identities: list[bytes] = []
    start, time = "", b""
    for event_id in event_ids:
        if event_id[:_TIMED] != start:
            start = event_id[:_TIMED]
            time = _time_of(start)
        head = begin()
        head.update(event_id.encode())
        identities.append(time + head.digest()[len(time) :] + end)
    return identities


def identity_prefix(stream: str, event_id: str) -> bytes:
    """The first 12 bytes of every identity with this stream and id."""
    time = _time_of(event_id[:_TIMED])
    return time + former_prefix(stream, event_id)[len(time) :]


def former_prefix(stream: str, event_id: str) -> bytes:
    """What `identity_prefix` was up to version 0.1: stored events may still have it."""
    head = _stream_hash(stream).copy()
    head.update(event_id.encode())
    return head.digest()


def prefixes_of(stream: str, event_id: str, source: str | None = None) -> list[bytes]:
    """How the identity of a stored event with this stream and id begins, or is, where the source is given."""
    end = b"" if source is None else _source_hash(source)
    now, former = identity_prefix(stream, event_id), former_prefix(stream, event_id)
    return [now + end] if now == former else [now + end, former + end]


@lru_cache(maxsize=1024)
def _time_of(start: str) -> bytes:
    """The bytes that stand for the time of a UUID of version 7 (RFC 9562, 5.7) which begins so; none for all else."""
    if not (len(start) == _TIMED and start[8] == start[13] == "-" and start[14] == "7"):
        return b""
    try:
        milliseconds = int(start[:8] + start[9:13], 16)
    except ValueError:
        return b""
    return (milliseconds >> 6 & 0xFFFF).to_bytes(2, "big")


@lru_cache(maxsize=4096)
def _stream_hash(stream: str) -> hashlib.blake2b:
    """Only ever copied: to begin a hash anew costs twice as much as the rest of it."""
    return hashlib.blake2b(stream.encode() + _SEPARATOR, digest_size=12)


def fingerprint(key: str | None, value: bytes) -> int:
    """Stands for key and value when a repeated id is compared with its original; a signed 64-bit integer."""
    digest = hashlib.blake2b(value, digest_size=8, person=b"keyless" if key is None else b"keyed")
    if key is not None:
        digest.update(b"\x00" + key.encode())
    return int.from_bytes(digest.digest(), "big", signed=True)


@lru_cache(maxsize=4096)
def _source_hash(source: str) -> bytes:
    return hashlib.blake2b(source.encode(), digest_size=8).digest()
