"""From one epoch to the next in the store: what a new log goes on with, and the history that it takes over.

The documents of a former epoch are written again under positions of the new one, each at the offset that it had. So
history stays one sequence, which no reader or writer of the store has to put together. A document in ``checkpoints``,
whose ``_id`` is the epoch's text, says that this is done: ``stops`` of each former epoch, and ``others``, epochs whose
history the log does not go on with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pymongo import ReplaceOne, UpdateOne
from pymongo.errors import BulkWriteError

from shared.backends.mongo.documents import (
    CHECKPOINTS,
    DROPPING,
    EVENTS,
    FLOORS,
    STREAMS,
    Document,
    counter_key,
    offset_of,
    partition_key,
    partition_of_key,
    position_key,
)
from shared.backends.mongo.driver import Calls, Database, fetch
from shared.backends.mongo.queries import floors_of, records_between
from shared.backends.mongo.store import MongoStore
from shared.backends.mongo.writing import refused_copies
from shared.clock import Clock
from shared.partitioning import partitions_of_stream
from shared.position import MAX_PARTITIONS, Epoch
from shared.records import Expiry, FeedBatch, FormerEpoch, PageQuery

IDENTITIES_MS = 24 * 3600 * 1000
"""How long the identities of events are still known that retention had begun to delete."""
PAGE = 2000
PAGE_BYTES = 8 * 1024 * 1024
DELETED_AT_ONCE = 5000
STREAMS_LOOKED_AT = 1000


@dataclass(frozen=True, slots=True)
class Succession:
    """What the store says of the epochs it has."""

    checkpoints: Mapping[Epoch, Mapping[int, int]]
    """Epoch → partition → checkpoint."""
    former: Mapping[Epoch, Sequence[FormerEpoch]]
    """Epoch that took over another one → what it goes on with."""
    others: Mapping[Epoch, Sequence[Epoch]]
    """The same → epochs that it knows of and does not go on with."""

    def unknown_to(self, epoch: Epoch) -> list[Epoch]:
        """Epochs that have history here and that this one says nothing of."""
        known = {epoch, *self.others.get(epoch, ()), *[each.epoch for each in self.former.get(epoch, ())]}
        return sorted(each for each, stops in self.checkpoints.items() if any(stops.values()) and each not in known)

    def bases(self, epoch: Epoch) -> dict[int, int]:
        """Where the partitions of an epoch begin: where the latest of its former ones stopped."""
        stops = [each.stops for each in self.former.get(epoch, ())]
        return {p: max(found.get(p, 0) for found in stops) for p in {p for found in stops for p in found}}


class Epochs:
    """The store as a whole."""

    def __init__(self, database: Database, calls: Calls) -> None:
        self._database = database
        self._calls = calls

    async def succession(self) -> Succession:
        """What there is. Raises `Unavailable`."""
        found = await self._calls.read(lambda: self._database[CHECKPOINTS].find({}).to_list(None))
        checkpoints: dict[Epoch, dict[int, int]] = {}
        former: dict[Epoch, list[FormerEpoch]] = {}
        others: dict[Epoch, list[Epoch]] = {}
        for document in found:
            key = document["_id"]
            if isinstance(key, str):
                epoch = Epoch.parse(key)
                stops: dict[str, list[int]] = document["stops"]
                former[epoch] = [FormerEpoch(Epoch.parse(text), dict(enumerate(ends))) for text, ends in stops.items()]
                others[epoch] = [Epoch.parse(text) for text in document["others"]]
            else:
                epoch = Epoch(int.from_bytes(key[:4], "big"), int.from_bytes(key[4:8], "big"))
                checkpoints.setdefault(epoch, {})[partition_of_key(key)] = int(document["next"])
        return Succession(checkpoints, former, others)

    async def take_over(
        self, clock: Clock, old: Epoch, new: Epoch, stops: Mapping[int, int], succession: Succession
    ) -> int:
        """Have an epoch go on with another one's history below these offsets; how many events that is. May be repeated
        after any failure. Raises `Unavailable` or `OutcomeUnknown`."""
        partitions = len(stops)
        before, after = (
            MongoStore(self._database, self._calls, clock, epoch=epoch, partitions=partitions) for epoch in (old, new)
        )
        while await before.expire(Expiry(0, 0, 0, clock.unix_ms() + IDENTITIES_MS)):
            pass  # what retention was about to do becomes shadows, or its identities would be lost
        events = 0
        for partition, stop in stops.items():
            keys = partition_key(old, partition), partition_key(new, partition)
            # First what is known of deleted events: a copy of one that stands behind it is a second copy then.
            await self._copy_shadows(*keys)
            events += await _copy(before, after, partition, stop)
            await self._copy_floor(*keys)
        former = [
            FormerEpoch(each.epoch, {p: min(each.stops.get(p, 0), stop) for p, stop in stops.items()})
            for each in succession.former.get(old, ())
        ]
        former.append(FormerEpoch(old, dict(stops)))
        known = {new, *[each.epoch for each in former]}
        others = sorted({*succession.checkpoints, *succession.others.get(old, ())} - known)
        await self._say(new, former, others)
        await self._drop(old, stops)
        return events

    async def finish(self, epoch: Epoch, succession: Succession) -> FormerEpoch | None:
        """What is left of a `take_over` that was broken off after its history was there, for this epoch: None where
        nothing was, else which one is dropped now. Raises `Unavailable` or `OutcomeUnknown`."""
        wanted = {"_id": str(epoch), DROPPING: True}
        if not await self._calls.read(lambda: self._database[CHECKPOINTS].find(wanted).to_list(1)):
            return None
        last = succession.former[epoch][-1]
        await self._drop(last.epoch, last.stops)
        return last

    async def is_at_home(self, epoch: Epoch, partitions: int) -> bool:
        """Whether the streams stand where so many partitions put them. Raises `Unavailable`."""
        keys = {counter_key(partition_key(epoch, partition)): partition for partition in range(MAX_PARTITIONS)}
        found = await self._calls.read(lambda: self._database[STREAMS].find({}).to_list(STREAMS_LOOKED_AT))
        for stream in found:
            there = {keys[name] for name in stream.get("c", {}) if name in keys}
            spread = int(stream.get("spread", 1))
            if not there <= set(partitions_of_stream(stream["_id"], partitions=partitions, spread=spread)):
                return False
        return True

    async def _copy_shadows(self, old: bytes, new: bytes) -> None:
        """What copies are known by of the events that retention has deleted."""
        for found in await self._calls.read(lambda: fetch(self._database, floors_of([old]))):
            at, stop = int(found.get("gone", 0)), int(found.get("next", 0))
            while at < stop:
                query = records_between(old, at, stop, streams=None, backwards=False, limit=PAGE)
                page = await self._calls.read(lambda query=query: fetch(self._database, query))  # type: ignore[misc]
                await self._write_shadows([_moved(document, new) for document in page if "u" in document])
                at = offset_of(page[-1]["_id"]) + 1 if len(page) == PAGE else stop

    async def _write_shadows(self, shadows: Sequence[ReplaceOne[Document]]) -> None:
        async def write() -> None:
            try:
                await self._database[EVENTS].bulk_write(shadows, ordered=False)
            except BulkWriteError as error:
                # An attempt before has put a copy in its place, which serves as well.
                refused_copies(error, [{} for _ in shadows])

        if shadows:
            await self._calls.write(write)

    async def _copy_floor(self, old: bytes, new: bytes) -> None:
        """Where a partition begins."""
        for found in await self._calls.read(lambda: fetch(self._database, floors_of([old]))):
            stop = int(found.get("next", 0))
            marks = {name: int(found[name]) for name in ("gone", "shadows") if name in found}
            said: Document = {"$set": {"next": stop, "cleared": stop, **marks}}
            await self._write(FLOORS, [UpdateOne({"_id": new}, said, upsert=True)])

    async def _write(self, collection: str, requests: Sequence[Any]) -> None:
        await self._calls.write(lambda: self._database[collection].bulk_write(requests, ordered=False))

    async def _say(self, epoch: Epoch, former: Sequence[FormerEpoch], others: Sequence[Epoch]) -> None:
        stops = {str(each.epoch): [each.stops[p] for p in sorted(each.stops)] for each in former}
        said = {"$set": {"stops": stops, "others": [str(each) for each in others], DROPPING: True}}
        update = UpdateOne({"_id": str(epoch)}, said, upsert=True)
        await self._write(CHECKPOINTS, [update])

    async def _drop(self, old: Epoch, stops: Mapping[int, int]) -> None:
        """The documents and counts of an epoch that was copied."""
        for partition in stops:
            uncount = {"update": STREAMS, "updates": [_uncounted(partition_key(old, partition))]}
            await self._calls.write(lambda uncount=uncount: self._database.command(uncount))  # type: ignore[misc]
        for partition, stop in stops.items():
            key = partition_key(old, partition)
            for first in range(0, stop, DELETED_AT_ONCE):
                low, high = position_key(key, first), position_key(key, min(first + DELETED_AT_ONCE, stop) - 1)
                wanted = {"p": key, "_id": {"$gte": low, "$lte": high}}
                deletes: Document = {"delete": EVENTS, "deletes": [{"q": wanted, "limit": 0}]}
                await self._calls.write(lambda deletes=deletes: self._database.command(deletes))  # type: ignore[misc]
        done = {
            "update": CHECKPOINTS,
            "updates": [{"q": {DROPPING: True}, "u": {"$unset": {DROPPING: ""}}, "multi": True}],
        }
        await self._calls.write(lambda: self._database.command(done))


def _moved(document: Document, key: bytes) -> ReplaceOne[Document]:
    position = position_key(key, offset_of(document["_id"]))
    return ReplaceOne({"_id": position, "p": key}, {**document, "_id": position, "p": key}, upsert=True)


def _uncounted(key: bytes) -> Document:
    path = f"c.{counter_key(key)}"
    return {"q": {path: {"$exists": True}}, "u": {"$unset": {path: ""}}, "multi": True}


async def _copy(before: MongoStore, after: MongoStore, partition: int, stop: int) -> int:
    events = at = 0
    while at < stop:
        page = await before.page(PageQuery(partition, at, stop, PAGE, PAGE_BYTES))
        lost = [(first, last, False) for first, last in page.missing]
        lost += [(first, last, True) for first, last in page.deleted]
        records = list(page.records)
        for first, last, is_deleted in sorted(lost):
            found = [record for record in records if record.offset < first]
            records = records[len(found) :]
            await after.persist(FeedBatch(partition, at, first, found))
            await after.pass_over(partition, first, last, is_deleted=is_deleted)
            at = last
        await after.persist(FeedBatch(partition, at, page.next, records))
        events += len(page.records)
        at = page.next
    return events
