"""Every question the adapter asks, as data: what it filters, which index answers it, and in which order. Pure; no I/O.

They stand here together so that a test can show for each of them, on a real server, that its index is used, and that
under the shard keys of `shared.backends.mongo.sharding` a router would send it only where its documents are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared.backends.mongo.documents import (
    BY_IDENTITY,
    BY_POSITION,
    BY_STREAM,
    BY_TIME,
    CHECKPOINTS,
    EVENTS,
    FLOORS,
    STREAMS,
    Document,
    position_key,
    prefix_bounds,
)

MOST_NAMES = 100
"""Up to so many streams of a page are found by the stream index, which merges as many scans; for more of them the
partition is read and what is not asked for is dropped by the server."""
_ID_INDEX = "_id_"


@dataclass(frozen=True, slots=True)
class Query:
    """One ``find``."""

    collection: str
    filter: Document
    hint: str
    sort: tuple[tuple[str, int], ...] = ()
    limit: int = 0
    projection: Document | None = None

    def options(self) -> dict[str, Any]:
        """Keyword arguments for the driver's ``find``."""
        found: dict[str, Any] = {"hint": self.hint}
        if self.sort:
            found["sort"] = list(self.sort)
        if self.limit:
            found["limit"] = self.limit
        if self.projection is not None:
            found["projection"] = self.projection
        return found


def records_between(
    partition: bytes, low: int, high: int, *, streams: Sequence[str] | None, backwards: bool, limit: int
) -> Query:
    """Documents of [low, high) in order; with streams, only theirs and no stubs."""
    wanted: Document = {"p": partition, "_id": _between(partition, low, high)}
    hint = BY_POSITION
    if streams is not None:
        wanted["s"] = {"$in": list(streams)}
        if len(streams) <= MOST_NAMES:
            hint = BY_STREAM
    return Query(EVENTS, wanted, hint, (("_id", -1 if backwards else 1),), limit)


def positions_between(partition: bytes, low: int, high: int) -> Query:
    """The bare positions of [low, high), in order."""
    wanted = {"p": partition, "_id": _between(partition, low, high)}
    return Query(EVENTS, wanted, BY_POSITION, (("_id", 1),), 0, {"_id": 1})


def by_identities(partitions: Sequence[bytes], identities: Sequence[bytes]) -> Query:
    """Where these identities stand, and what a copy is compared with."""
    wanted = {"p": _any_of(partitions), "i": {"$in": list(identities)}}
    return Query(EVENTS, wanted, BY_IDENTITY, projection={"_id": 1, "i": 1, "t": 1, "w": 1, "h": 1})


def by_prefix(partitions: Sequence[bytes], prefix: bytes, *, limit: int) -> Query:
    """Records whose identity begins so, or is this one."""
    low, high = prefix_bounds(prefix)
    wanted = {"p": _any_of(partitions), "i": {"$gte": low, "$lte": high}, "s": {"$exists": True}}
    return Query(EVENTS, wanted, BY_IDENTITY, limit=limit)


def first_since(partition: bytes, append_ms: int) -> Query:
    """Position of the first visible record appended at or after a time."""
    wanted = {"p": partition, "t": {"$gte": append_ms}}
    return Query(EVENTS, wanted, BY_TIME, (("t", 1), ("_id", 1)), 1, {"_id": 1})


def last_within(partition: bytes, low: int, high: int) -> Query:
    """The last visible record of [low, high)."""
    wanted = {"p": partition, "_id": _between(partition, low, high), "t": {"$exists": True}}
    return Query(EVENTS, wanted, BY_POSITION, (("_id", -1),), 1, {"_id": 1, "t": 1})


def oldest(partition: bytes, low: int, high: int, *, limit: int) -> Query:
    """The first documents of [low, high), as far as deleting them takes it, and their sizes."""
    wanted = {"p": partition, "_id": _between(partition, low, high)}
    shown = {"_id": 1, "s": 1, "t": 1, "i": 1, "size": {"$bsonSize": "$$ROOT"}}
    return Query(EVENTS, wanted, BY_POSITION, (("_id", 1),), limit, shown)


def events_within(partition: bytes, low: int, high: int) -> Query:
    """The visible records of [low, high) that have their identity: what leaves a shadow."""
    kept = {"i": {"$exists": True}, "t": {"$exists": True}}
    return Query(EVENTS, {"p": partition, "_id": _between(partition, low, high), **kept}, BY_POSITION)


def nameless_within(partition: bytes, low: int, high: int) -> Query:
    """Stubs and second copies of [low, high): what leaves none."""
    wanted = {"p": partition, "_id": _between(partition, low, high), "i": {"$exists": False}}
    return Query(EVENTS, wanted, BY_POSITION)


def shadows(partition: bytes, low: int, high: int, *, limit: int) -> Query:
    """The first documents of [low, high), where there are only shadows, and until when they stand."""
    wanted = {"p": partition, "_id": _between(partition, low, high)}
    return Query(EVENTS, wanted, BY_POSITION, (("_id", 1),), limit, {"_id": 1, "u": 1})


def checkpoints_of(partitions: Sequence[bytes]) -> Query:
    """Checkpoints of these partitions."""
    return Query(CHECKPOINTS, {"_id": {"$in": list(partitions)}}, _ID_INDEX)


def floors_of(partitions: Sequence[bytes]) -> Query:
    """Floors of these partitions."""
    return Query(FLOORS, {"_id": {"$in": list(partitions)}}, _ID_INDEX)


def streams_after(name: str, *, limit: int) -> Query:
    """Streams in byte order of their names."""
    return Query(STREAMS, {"_id": {"$gt": name}}, _ID_INDEX, (("_id", 1),), limit)


def streams_named(names: Sequence[str]) -> Query:
    """These streams."""
    return Query(STREAMS, {"_id": {"$in": list(names)}}, _ID_INDEX)


def spreads_of(names: Sequence[str]) -> Query:
    """The spreads of these streams."""
    return Query(STREAMS, {"_id": {"$in": list(names)}}, _ID_INDEX, projection={"spread": 1})


def _between(partition: bytes, low: int, high: int) -> Document:
    # Both ends inclusive: MongoDB 7.0.15 loses the first document of a half-open range ($gte with $lt) when it reads a
    # clustered collection backwards; closed ranges are right in both directions.
    return {"$gte": position_key(partition, low), "$lte": position_key(partition, high - 1)}


def _any_of(partitions: Sequence[bytes]) -> Any:
    return partitions[0] if len(partitions) == 1 else {"$in": list(partitions)}
