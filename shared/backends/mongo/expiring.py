"""Deleting the oldest events, a piece at a time. Each step may be done any number of times, by any number of nodes at
once, and may be broken off anywhere:

1. the *floor* of the partition is raised; from then on no reader is given what is below it;
2. the piece is counted out of its streams (`documents.uncounting` says why nothing counts twice);
3. events become *shadows*, by which copies of them are known; what has no identity is deleted;
4. ``cleared`` is moved up to where that was done. A piece begins there, so whatever of an earlier one was left undone
   is done first, by whoever comes next.

Shadows are the lowest documents of a partition, oldest first, so those whose time is over need no index to be found.
Below ``gone`` there are none.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from pymongo import DeleteMany, UpdateMany, UpdateOne

from shared.backends.mongo import queries
from shared.backends.mongo.documents import (
    CHECKPOINTS,
    DROPPING,
    EVENTS,
    FLOORS,
    SHADOW_BYTES,
    STREAMS,
    Document,
    becoming_shadow,
    offset_of,
    uncounting,
)
from shared.backends.mongo.driver import Calls, Database, fetch
from shared.backends.mongo.floors import Floors
from shared.records import Expiry

PIECE: Final = 500
PIECE_BYTES: Final = 4 * 1024 * 1024
"""What of a partition is deleted at once, whichever comes first."""


class Victim(NamedTuple):
    """A document that may go."""

    append_ms: int
    partition: int
    offset: int
    size: int


class Oldest(NamedTuple):
    """The oldest documents of a partition."""

    victims: Sequence[Victim]
    is_cut: bool
    """Whether there are more behind them."""
    documents: Sequence[Document] = ()


def oldest_of(partition: int, documents: Sequence[Document], *, is_cut: bool) -> Oldest:
    """Up to `PIECE_BYTES` of these documents. What has no time goes along with the event before it, at the beginning
    with the one behind it; nothing goes where there is no event at all up to the checkpoint."""
    times = [int(document["t"]) for document in documents if "t" in document]
    if not times and not is_cut:
        return Oldest((), is_cut)
    now, size = times[0] if times else 0, 0
    found: list[Victim] = []
    for document in documents:
        now = max(now, int(document.get("t", 0)))
        size += int(document["size"])
        if found and size > PIECE_BYTES:
            return Oldest(found, True, documents)
        found.append(Victim(now, partition, offset_of(document["_id"]), int(document["size"])))
    return Oldest(found, is_cut, documents)


def choose(oldest: Sequence[Oldest], *, before_ms: int, excess: int) -> dict[int, int]:
    """Partition → how many of its oldest go: all that are too old, then the oldest of all until ``excess`` bytes are
    free. For its size alone, the newest of a partition stays."""
    last = {each.victims[-1]: each.is_cut for each in oldest if each.victims}
    chosen: Counter[int] = Counter()
    freed = 0
    for victim in heapq.merge(*[each.victims for each in oldest]):
        if victim.append_ms >= before_ms:
            if freed >= excess:
                break
            if victim in last:
                if last[victim]:
                    break  # what stands behind it may be older than what the others have
                continue
        chosen[victim.partition] += 1
        freed += max(victim.size - SHADOW_BYTES, 0)
    return dict(chosen)


class Expiring:
    """See `shared.offers.ExpiringStore`."""

    def __init__(self, database: Database, calls: Calls, keys: Sequence[bytes], floors: Floors) -> None:
        self._database = database
        self._calls = calls
        self._keys = keys
        self._floors = floors

    async def expire(self, expiry: Expiry, checkpoints: Mapping[int, int]) -> bool:
        """Delete a piece of each partition; whether there may be more. Raises `Unavailable` or `OutcomeUnknown`."""
        states = await self._floors.read()
        undone = [partition for partition, state in states.items() if _cleared(state) < _next(state)]
        for partition in undone:
            await self._finish(partition, states[partition], expiry.until_ms)
        if undone:
            return True
        is_deleting = await self._delete(expiry, states, checkpoints)
        forgotten = [await self._forget(partition, state, expiry.now_ms) for partition, state in states.items()]
        return is_deleting or any(forgotten)

    # --- what goes

    async def _delete(self, expiry: Expiry, states: Mapping[int, Document], checkpoints: Mapping[int, int]) -> bool:
        excess = await self._excess(states, expiry.max_bytes) if expiry.max_bytes else 0
        if not expiry.before_ms and excess <= 0:
            return False
        oldest: dict[int, Oldest] = {}
        for partition, checkpoint in checkpoints.items():
            floor = _next(states.get(partition, {}))
            if floor < checkpoint and (excess > 0 or await self._is_due(partition, floor, checkpoint, expiry)):
                oldest[partition] = await self._oldest(partition, floor, checkpoint)
        chosen = choose(list(oldest.values()), before_ms=expiry.before_ms, excess=excess)
        pieces = {partition: oldest[partition].documents[:count] for partition, count in chosen.items()}
        stops = {partition: offset_of(piece[-1]["_id"]) + 1 for partition, piece in pieces.items()}
        await self._raise(stops)
        for partition, piece in pieces.items():
            start = _next(states.get(partition, {}))
            await self._clear(partition, start, stops[partition], piece, expiry.until_ms)
        return bool(pieces)

    async def _is_due(self, partition: int, floor: int, checkpoint: int, expiry: Expiry) -> bool:
        """Mostly the oldest is not old enough, which it takes one document to know."""
        first = await self._read(queries.oldest(self._keys[partition], floor, checkpoint, limit=1))
        return bool(first) and int(first[0].get("t", 0)) < expiry.before_ms

    async def _oldest(self, partition: int, low: int, high: int) -> Oldest:
        documents = await self._read(queries.oldest(self._keys[partition], low, high, limit=PIECE))
        return oldest_of(partition, documents, is_cut=len(documents) == PIECE)

    async def _excess(self, states: Mapping[int, Document], max_bytes: int) -> int:
        stats: list[Document] = [{"$collStats": {"storageStats": {}}}, {"$project": {"size": "$storageStats.size"}}]
        asked: Document = {"aggregate": EVENTS, "pipeline": stats, "cursor": {}}
        if await self._calls.read(lambda: self._database[CHECKPOINTS].find({DROPPING: True}).to_list(1)):
            return 0  # what stands there twice goes without us
        answer = await self._calls.read(lambda: self._database.command(asked))
        size = sum(int(shard["size"]) for shard in answer["cursor"]["firstBatch"])
        shadows = sum(int(state.get("shadows", 0)) for state in states.values())
        return size - shadows * SHADOW_BYTES - max_bytes

    async def _read(self, query: queries.Query) -> list[Document]:
        return await self._calls.read(lambda: fetch(self._database, query))

    # --- how it goes

    async def _raise(self, stops: Mapping[int, int]) -> None:
        if not stops:
            return
        raised = [UpdateOne({"_id": self._keys[p]}, {"$max": {"next": stop}}, upsert=True) for p, stop in stops.items()]
        await self._write(FLOORS, raised)
        for partition, stop in stops.items():
            self._floors.learn(partition, stop)

    async def _finish(self, partition: int, state: Document, until_ms: int) -> None:
        """A part of what somebody began."""
        start, stop = _cleared(state), _next(state)
        documents = await self._read(queries.oldest(self._keys[partition], start, stop, limit=PIECE))
        if len(documents) == PIECE:
            stop = offset_of(documents[-1]["_id"]) + 1
        await self._clear(partition, start, stop, documents, until_ms)

    async def _clear(self, partition: int, start: int, stop: int, documents: Sequence[Document], until_ms: int) -> None:
        """Take away what is in [start, stop): ``documents``, which are below the floor and begin where the last piece
        ended."""
        key = self._keys[partition]
        gone: dict[str, list[int]] = defaultdict(list)
        for document in documents:
            if "s" in document:
                gone[document["s"]].append(offset_of(document["_id"]))
        if gone:
            counts = [UpdateOne({"_id": name}, uncounting(key, offsets)) for name, offsets in gone.items()]
            await self._write(STREAMS, counts)
        events, nameless = queries.events_within(key, start, stop), queries.nameless_within(key, start, stop)
        shadowing = UpdateMany(events.filter, becoming_shadow(until_ms), hint=events.hint)
        await self._write(EVENTS, [shadowing, DeleteMany(nameless.filter, hint=nameless.hint)])
        shadows = sum("i" in document for document in documents)
        await self._mark(key, "cleared", start, stop, shadows)

    async def _mark(self, key: bytes, name: str, old: int, new: int, shadows: int) -> None:
        """Move a mark, unless somebody else has: so a piece's shadows are counted once."""
        wanted = {"_id": key, name: old or {"$in": [0, None]}}
        await self._write(FLOORS, [UpdateOne(wanted, {"$set": {name: new}, "$inc": {"shadows": shadows}})])

    async def _forget(self, partition: int, state: Document, now_ms: int) -> bool:
        """Delete shadows whose time is over; whether there were any."""
        key, gone, cleared = self._keys[partition], int(state.get("gone", 0)), _cleared(state)
        if gone >= cleared:
            return False
        found = await self._read(queries.shadows(key, gone, cleared, limit=1))
        if found and not _is_over(found[0], now_ms):
            return False
        found = await self._read(queries.shadows(key, gone, cleared, limit=PIECE))
        over = next((at for at, document in enumerate(found) if not _is_over(document, now_ms)), len(found))
        if found and not over:
            return False  # somebody else has just deleted the one that was over
        stop = cleared if over == len(found) < PIECE else offset_of(found[over - 1]["_id"]) + 1
        await self._mark(key, "gone", gone, stop, -sum("u" in document for document in found[:over]))
        # From the beginning on: what one that died here, or a late writer, has left is lower.
        old = queries.positions_between(key, 0, stop)
        await self._write(EVENTS, [DeleteMany(old.filter, hint=old.hint)])
        return True

    async def _write(self, collection: str, requests: Sequence[Any]) -> None:
        await self._calls.write(lambda: self._database[collection].bulk_write(requests, ordered=False))


def _next(state: Document) -> int:
    return int(state.get("next", 0))


def _cleared(state: Document) -> int:
    return int(state.get("cleared", 0))


def _is_over(document: Document, now_ms: int) -> bool:
    return int(document.get("u", 0)) < now_ms
