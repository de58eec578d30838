"""What stands in the database: keys, documents, indexes. Pure; no I/O.

``events``, clustered by its ``_id``, has one document for **every** offset below a partition's checkpoint::

    _id  position: epoch ordinal (4 bytes) | epoch random (4) | partition (1) | offset (7), big-endian
    p    the first nine bytes of it: the partition, which is the shard key and leads every index
    s t i v   stream, append time, identity (20 bytes), value
    k         ordering key, where there is one
    d q a h   data_at, kind, accepted_ms, fingerprint of key and value

A record that is not visible (duplicate, void, not ours) leaves a *stub* of ``_id`` and ``p`` alone, so that an offset
without a document is damage and not a guess. A visible record whose identity a lower offset has already (possible only
when it was appended while look-ups in the store were skipped) keeps its identity in ``j`` instead of ``i``: it is shown
as the log says, and look-ups go on to name the first.

Below the floor, where retention has deleted, an event leaves a *shadow* for a while, by which copies of it are known:
``_id``, ``p``, ``i`` and ``h``, with ``w`` = append time and ``u`` = until when. It has no ``s`` and ``t``, so pages of
streams and questions of time do not meet it. Nothing else is left there; where nothing is left, none is missing.

``streams`` has a document for each stream: ``_id`` name, ``spread``, ``created``, and in ``c`` for each partition what
is counted: ``n`` events up to offset ``o``, the last one appended at ``t``; ``x`` of them, up to offset ``y``, are
deleted again. ``checkpoints`` and ``floors`` have one for each partition: ``_id`` as ``p``, ``next`` = first offset not
yet in the store, first offset not yet deleted. ``holes`` of a floor are ranges that the log had deleted before they
were stored; `expiring` says what ``cleared``, ``gone`` and ``shadows`` are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from shared.position import Epoch
from shared.records import IDENTITY_BYTES, FeedBatch, Record, StreamInfo, fingerprint

Document = dict[str, Any]

EVENTS: Final = "events"
STREAMS: Final = "streams"
CHECKPOINTS: Final = "checkpoints"
DROPPING: Final = "dropping"
"""In ``checkpoints``, of an epoch that took another one over: the other one's documents are not all gone yet."""
FLOORS: Final = "floors"

BY_POSITION: Final = "position"
"""Name of the clustered index."""
BY_IDENTITY: Final = "identity"
BY_STREAM: Final = "stream"
BY_TIME: Final = "time"

SHARD_KEYS: Final[Mapping[str, Mapping[str, int]]] = {EVENTS: {"p": 1}, STREAMS: {"_id": 1}}
"""Collection → its shard key. ``checkpoints`` and ``floors`` have a few dozen documents and stay on one shard."""

_OFFSET_BYTES: Final = 7
_PREFIX_BYTES: Final = 9


def partition_key(epoch: Epoch, partition: int) -> bytes:
    """What all positions of a partition begin with; the ``p`` of its documents."""
    return epoch.ordinal.to_bytes(4, "big") + epoch.random.to_bytes(4, "big") + partition.to_bytes(1, "big")


def position_key(partition: bytes, offset: int) -> bytes:
    """The ``_id`` of an offset: sorts as the log does."""
    return partition + offset.to_bytes(_OFFSET_BYTES, "big")


def offset_of(position: bytes) -> int:
    """The offset in an ``_id``."""
    return int.from_bytes(position[_PREFIX_BYTES:], "big")


def partition_of_key(key: bytes) -> int:
    """The partition in a ``p`` or an ``_id``."""
    return key[_PREFIX_BYTES - 1]


def document_of(partition: bytes, record: Record) -> Document:
    """A visible record as a document."""
    document: Document = {
        "_id": position_key(partition, record.offset),
        "p": partition,
        "s": record.stream,
        "t": record.append_ms,
        "i": record.identity,
        "v": record.value,
        "d": record.data_at,
        "q": int(record.kind),
        "a": record.accepted_ms,
        "h": fingerprint(record.key, record.value),
    }
    if record.key is not None:
        document["k"] = record.key
    return document


def documents_of(partition: bytes, batch: FeedBatch) -> list[Document]:
    """One document for each offset of the batch, in order."""
    documents: list[Document] = []
    at = batch.start
    for record in batch.records:
        documents += _stubs(partition, at, record.offset)
        documents.append(document_of(partition, record))
        at = record.offset + 1
    documents += _stubs(partition, at, batch.next)
    return documents


def _stubs(partition: bytes, start: int, stop: int) -> list[Document]:
    return [{"_id": position_key(partition, offset), "p": partition} for offset in range(start, stop)]


def as_second_copy(document: Document) -> Document:
    """The document of a visible record whose identity a lower offset has already."""
    copy = dict(document)
    copy["j"] = copy.pop("i")
    return copy


def record_of(document: Document) -> Record | None:
    """The record in a document; None for a stub or shadow.

    What the driver reads as 64 bits is a type of its own; the numbers of records are plain ones, which can be encoded.
    """
    if "s" not in document:
        return None
    position: bytes = document["_id"]
    return Record(
        position[8],
        int.from_bytes(position[_PREFIX_BYTES:], "big"),
        int(document["t"]),
        document.get("i") or document["j"],
        document["s"],
        document.get("k"),
        document["v"],
        document["d"],
        document["q"],
        int(document["a"]),
    )


SHADOW_BYTES: Final = 109
"""What a shadow takes in ``events``."""


def becoming_shadow(until_ms: int) -> list[Document]:
    """The update that leaves of an event what its copies are known by."""
    return [{"$set": {"w": "$t", "u": until_ms}}, {"$unset": ["s", "t", "v", "k", "d", "q", "a"]}]


def prefix_bounds(prefix: bytes) -> tuple[bytes, bytes]:
    """First and last identity with this prefix (`shared.records.prefixes_of`)."""
    left = IDENTITY_BYTES - len(prefix)
    return prefix + bytes(left), prefix + b"\xff" * left


# --- streams ---------------------------------------------------------------------------------------


def counter_key(partition: bytes) -> str:
    """Name of a partition's counts within ``c``; not a number, which MongoDB might take for an array's index."""
    return "p" + partition.hex()


class StreamTally:
    """What a batch adds to one stream."""

    __slots__ = ("first_ms", "last_ms", "offsets")

    def __init__(self, first_ms: int) -> None:
        self.first_ms = first_ms
        self.last_ms = first_ms
        self.offsets: list[int] = []


def tally(records: Iterable[Record]) -> dict[str, StreamTally]:
    """The records of one partition, by stream."""
    found: dict[str, StreamTally] = {}
    for record in records:
        mine = found.get(record.stream)
        if mine is None:
            mine = found[record.stream] = StreamTally(record.append_ms)
        mine.offsets.append(record.offset)
        mine.last_ms = record.append_ms
    return found


def counting(partition: bytes, added: StreamTally) -> list[Document]:
    """The update that counts a batch's records of one stream, once however often it is done.

    ``n`` is always the number of visible records up to ``o``: a batch is complete, and starts at or below the
    checkpoint, which moves only after everything below it was counted. So those of its records that lie above ``o`` are
    the ones not yet counted, whoever counted the others and however the batches of several writers overlap.
    """
    path = f"c.{counter_key(partition)}"
    counted = {"$ifNull": [f"${path}.o", -1]}
    new = {"$filter": {"input": added.offsets, "cond": {"$gt": ["$$this", counted]}}}
    return [
        {
            "$set": {
                "spread": {"$ifNull": ["$spread", 1]},
                "created": {"$min": ["$created", added.first_ms]},
                f"{path}.n": {"$add": [{"$ifNull": [f"${path}.n", 0]}, {"$size": new}]},
                f"{path}.o": {"$max": [f"${path}.o", added.offsets[-1]]},
                f"{path}.t": {"$max": [f"${path}.t", added.last_ms]},
            }
        }
    ]


def uncounting(partition: bytes, offsets: Sequence[int]) -> list[Document]:
    """The update that counts deleted records of one stream, once however often it is done.

    As in `counting`: ``x`` is always the number of deleted records up to ``y``. A piece that is deleted begins where
    everything below was counted, is counted whole, and is counted before any of it becomes a shadow. So of a stream's
    records that are still to be seen, those above ``y`` are the ones not yet counted, whoever counted the others.
    """
    path = f"c.{counter_key(partition)}"
    new = {"$filter": {"input": offsets, "cond": {"$gt": ["$$this", {"$ifNull": [f"${path}.y", -1]}]}}}
    return [
        {
            "$set": {
                f"{path}.x": {"$add": [{"$ifNull": [f"${path}.x", 0]}, {"$size": new}]},
                f"{path}.y": {"$max": [f"${path}.y", offsets[-1]]},
            }
        }
    ]


def stream_info(document: Document, partitions: Mapping[str, int]) -> StreamInfo:
    """A document of ``streams``, read for the epoch whose partitions are given by their `counter_key`. Events of older
    epochs count; their offsets mean nothing here."""
    # Of an epoch that is over, a late piece of retention may have left what it counted out, and nothing else.
    known: dict[str, Document] = document.get("c") or {}
    counts = {key: count for key, count in known.items() if "n" in count}
    return StreamInfo(
        name=document["_id"],
        spread=int(document["spread"]),
        created_ms=int(document["created"]),
        events=int(sum(count["n"] - count.get("x", 0) for count in counts.values())),
        last_ms=int(max((count["t"] for count in counts.values()), default=0)),
        last={partitions[key]: int(counts[key]["o"]) for key in sorted(counts) if key in partitions},
    )


# --- holes -----------------------------------------------------------------------------------------


def holes(offsets: Sequence[int], start: int, stop: int) -> list[tuple[int, int]]:
    """The ranges of [start, stop) that ascending offsets leave out."""
    if len(offsets) == stop - start:
        return []
    found: list[tuple[int, int]] = []
    at = start
    for offset in offsets:
        if offset > at:
            found.append((at, offset))
        at = offset + 1
    if at < stop:
        found.append((at, stop))
    return found
