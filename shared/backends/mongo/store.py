"""`EventStore` on a MongoDB replica set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pymongo import UpdateOne
from pymongo.errors import DuplicateKeyError

from shared.backends.mongo import queries
from shared.backends.mongo.documents import (
    FLOORS,
    STREAMS,
    Document,
    counter_key,
    holes,
    offset_of,
    partition_key,
    partition_of_key,
    record_of,
    stream_info,
)
from shared.backends.mongo.driver import Calls, Database, all_of, fetch, fetch_until
from shared.backends.mongo.expiring import Expiring
from shared.backends.mongo.floors import Floors
from shared.backends.mongo.pages import PageReader, above
from shared.backends.mongo.ranges import Range, joined, within, without
from shared.backends.mongo.soundness import MOST_AT_ONCE, Soundness
from shared.backends.mongo.spreads import SpreadCache
from shared.backends.mongo.writing import move_checkpoints, write_events, write_tallies
from shared.clock import Clock
from shared.errors import InternalError, StaleStream, StreamConflict, Unavailable
from shared.partitioning import partitions_of_stream
from shared.position import Epoch
from shared.records import (
    Duplicate,
    Expiry,
    FeedBatch,
    HistoryPage,
    NewEvent,
    PageQuery,
    Record,
    StreamInfo,
    fingerprint,
    prefixes_of,
)

MAX_FOUND = 10
IDENTITIES_A_QUERY = 2000
POSITIONS_A_BATCH = 20_000


class MongoStore:
    """The visible records of one epoch, complete below the checkpoints.

    What is asked goes to the primary with majority concern, checkpoint first, then what it bounds. A checkpoint never
    goes back, so a known one spares the question.
    """

    def __init__(self, database: Database, calls: Calls, clock: Clock, *, epoch: Epoch, partitions: int) -> None:
        self._database = database
        self._calls = calls
        self._clock = clock
        self._partitions = partitions
        self._keys = [partition_key(epoch, partition) for partition in range(partitions)]
        self._counters = {counter_key(key): partition for partition, key in enumerate(self._keys)}
        self._known = dict.fromkeys(range(partitions), 0)
        self._spreads = SpreadCache()
        self._soundness = Soundness()
        self._floors = Floors(database, calls, self._keys)
        self._expiring = Expiring(database, calls, self._keys, self._floors)

    @property
    def is_log(self) -> bool:
        """See `EventStore.is_log`."""
        return False

    async def checkpoints(self) -> Mapping[int, int]:
        """See `EventStore.checkpoints`."""
        await self._learn_checkpoints(self._keys)
        return dict(self._known)

    async def starts(self) -> Mapping[int, int]:
        """See `EventStore.starts`."""
        return await self._floors.all()

    async def expire(self, expiry: Expiry) -> bool:
        """See `ExpiringStore.expire`."""
        return await self._expiring.expire(expiry, await self.checkpoints())

    # --- writing ----------------------------------------------------------------------------------

    async def persist(self, *batches: FeedBatch) -> None:
        """See `EventStore.persist`. Three writes, however many batches there are."""
        new = [
            (self._keys[batch.partition], batch)
            for batch in batches
            if batch.start != batch.next and batch.next > self._known[batch.partition]
        ]
        if not new:
            return
        await all_of(
            write_events(self._database, self._calls, new),
            write_tallies(self._database, self._calls, new),
        )
        behind = await move_checkpoints(self._database, self._calls, new)
        refused = {batch.partition for batch in behind}
        for _, batch in new:
            if batch.partition not in refused:
                # What the majority has acknowledged: our own value. The document's may be that of somebody who still
                # waits.
                self._known[batch.partition] = max(self._known[batch.partition], batch.next)
        if behind:
            places = [f"partition {batch.partition}: the checkpoint lies below {batch.start}" for batch in behind]
            raise InternalError(", ".join(places))

    async def give_up(self, partition: int, start: int, stop: int) -> None:
        """See `EventStore.give_up`."""
        await self.pass_over(partition, start, stop, is_deleted=True)

    async def pass_over(self, partition: int, start: int, stop: int, *, is_deleted: bool) -> None:
        """Move the checkpoint over a range that nobody has: one that was deleted, which is said first, or damage."""
        key = self._keys[partition]
        if self._known[partition] >= stop:
            return
        if is_deleted:
            await self._say_deleted(key, start, stop)
        nothing = FeedBatch(partition, start, stop, [])
        if await move_checkpoints(self._database, self._calls, [(key, nothing)]):
            raise InternalError(f"partition {partition}: the checkpoint lies below {start}")
        self._known[partition] = max(self._known[partition], stop)

    async def _say_deleted(self, key: bytes, start: int, stop: int) -> None:
        hole = UpdateOne({"_id": key}, {"$addToSet": {"holes": [start, stop]}}, upsert=True)
        await self._calls.write(lambda: self._database[FLOORS].bulk_write([hole], ordered=False))

    # --- records ----------------------------------------------------------------------------------

    async def page(self, query: PageQuery) -> HistoryPage:
        """See `EventStore.page`."""
        checkpoint = await self._checkpoint(query.partition, query.stop)
        start, stop = min(query.start, checkpoint), min(query.stop, checkpoint)
        if start >= stop or (query.streams is not None and not query.streams):
            return HistoryPage([], start if query.backwards else max(start, stop))
        if query.limit <= 0:
            return HistoryPage([], stop if query.backwards else start)
        known = self._floors.known[query.partition]
        page = await self._page(query, start, stop)
        if not page.records and not query.backwards and known < self._floors.known[query.partition] < stop:
            return await self._page(query, start, stop)  # nothing but what is deleted: it goes on behind that
        return page

    async def _page(self, query: PageQuery, start: int, stop: int) -> HistoryPage:
        """The page over [start, stop), which is below the checkpoint."""
        partition, backwards = query.partition, query.backwards
        low, high = min(max(start, self._floors.known[partition]), stop), stop
        if low == high:
            return above(HistoryPage([], low), start, stop, self._floors.known[partition], backwards=backwards)
        if query.streams is not None:
            if backwards:
                low = max(low, high - MOST_AT_ONCE)
            else:
                high = min(high, low + MOST_AT_ONCE)
        reader = PageReader(self._database, self._calls, self._keys[partition], query)
        page = await reader.read(low, high)
        missing, deleted = page.missing, list[Range]()
        if query.streams is not None:
            covered = (page.next, high) if backwards else (low, page.next)
            missing = await self._missing(partition, *covered)
        if missing or reader.met_shadow or query.streams is not None:
            # Deleted on purpose, which is said before it is done; or gone. What is deleted a page of streams, and what
            # was deleted while it was read any page, can only tell by the floor as it is now.
            deleted = await self._floors.deleted(partition)
        page = above(page, start, stop, self._floors.known[partition], backwards=backwards)
        told = joined(sorted([*page.deleted, *within(missing, deleted)]))
        return HistoryPage(page.records, page.next, without(missing, deleted), told)

    async def _missing(self, partition: int, start: int, stop: int) -> list[tuple[int, int]]:
        """`damage`, of a stretch that was read only in part. They are counted first, which mostly is enough."""
        unsure = self._soundness.unsure(partition, start, stop, self._clock.monotonic())
        if unsure is None:
            return []
        low, high = unsure
        query = queries.positions_between(self._keys[partition], low, high)
        counting = {
            "count": query.collection,
            "query": query.filter,
            "hint": query.hint,
            "readConcern": {"level": "majority"},
        }
        answer = await self._calls.read(lambda: self._database.command(counting))
        found = [] if answer["n"] == high - low else await self._without_documents(partition, start, stop)
        if not found:
            self._soundness.found(partition, low, high, self._clock.monotonic())
        return found

    async def damage(self, partition: int, start: int, stop: int) -> Sequence[tuple[int, int]]:
        """The ranges of [start, stop), below the checkpoint and not deleted on purpose, that have no documents although
        every offset should have one. Reads every position there."""
        high = min(stop, await self._checkpoint(partition, stop))
        low = max(start, (await self._floors.all())[partition])
        missing = await self._without_documents(partition, low, high)
        return without(missing, await self._floors.deleted(partition)) if missing else []

    async def _without_documents(self, partition: int, low: int, high: int) -> list[tuple[int, int]]:
        found: list[int] = []

        def take(documents: Sequence[Document]) -> bool:
            found.extend(offset_of(document["_id"]) for document in documents)
            return False

        missing: list[tuple[int, int]] = []
        for first in range(low, high, POSITIONS_A_BATCH):
            last = min(first + POSITIONS_A_BATCH, high)
            query = queries.positions_between(self._keys[partition], first, last)
            found.clear()
            await self._calls.read(
                lambda query=query: fetch_until(self._database, query, take, batch=POSITIONS_A_BATCH)  # type: ignore[misc]
            )
            missing += holes(found, first, last)
        return joined(missing)

    async def find(self, stream: str, event_id: str, source: str | None) -> Sequence[Record]:
        """See `EventStore.find`."""
        records: list[Record] = []
        for prefix in prefixes_of(stream, event_id, source):
            query = queries.by_prefix(self._keys, prefix, limit=max(MAX_FOUND, len(self._keys)))
            documents = await self._calls.read(lambda query=query: fetch(self._database, query))  # type: ignore[misc]
            records += [record for record in map(record_of, documents) if record is not None]
        if records:
            await self._floors.read(*{record.partition for record in records})
        floors = self._floors.known
        shown = [
            r for r in records if floors[r.partition] <= r.offset < await self._checkpoint(r.partition, r.offset + 1)
        ]
        shown.sort(key=lambda record: (record.partition, record.offset))
        return shown[: 1 if source is not None else MAX_FOUND]

    async def lookup(self, partition: int, events: Sequence[NewEvent]) -> Mapping[bytes, Duplicate]:
        """See `EventStore.lookup`."""
        by_place: dict[frozenset[int], list[NewEvent]] = {}
        own = frozenset({partition})
        for event in events:
            places = own
            if event.spread > 1:
                # With another ordering key the event would have gone to another of its stream's partitions.
                places = own.union(partitions_of_stream(event.stream, partitions=self._partitions, spread=event.spread))
            by_place.setdefault(places, []).append(event)
        found: dict[bytes, Duplicate] = {}
        for places, asked in by_place.items():
            for at in range(0, len(asked), IDENTITIES_A_QUERY):
                found.update(await self._lookup(sorted(places), asked[at : at + IDENTITIES_A_QUERY]))
        return found

    async def _lookup(self, places: Sequence[int], events: Sequence[NewEvent]) -> Mapping[bytes, Duplicate]:
        asked = {event.identity: event for event in events}
        query = queries.by_identities([self._keys[place] for place in places], list(asked))
        found: dict[bytes, Duplicate] = {}
        for document in await self._calls.read(lambda: fetch(self._database, query)):
            position, event = document["_id"], asked[document["i"]]
            found[event.identity] = Duplicate(
                partition_of_key(position),
                offset_of(position),
                int(document["t"] if "t" in document else document["w"]),
                document["h"] == fingerprint(event.key, event.value),
            )
        return found

    # --- times ------------------------------------------------------------------------------------

    async def offset_at(self, append_ms: int) -> Mapping[int, int]:
        """See `EventStore.offset_at`."""
        checkpoints = await self.checkpoints()
        asked = [partition for partition, checkpoint in checkpoints.items() if checkpoint]
        found = await all_of(*[self._first_since(partition, append_ms) for partition in asked])
        firsts = dict(zip(asked, found, strict=True))
        floors = await self.starts()
        return {
            partition: min(max(firsts.get(partition, checkpoint), floors[partition]), checkpoint)
            for partition, checkpoint in checkpoints.items()
        }

    async def _first_since(self, partition: int, append_ms: int) -> int:
        query = queries.first_since(self._keys[partition], append_ms)
        documents = await self._calls.read(lambda: fetch(self._database, query))
        return offset_of(documents[0]["_id"]) if documents else self._known[partition]

    async def append_time(self, partition: int, offset: int) -> int | None:
        """See `EventStore.append_time`."""
        high = min(await self._checkpoint(partition, offset + 1), offset + 1)
        await self._floors.read(partition)
        low = self._floors.known[partition]
        if low >= high:
            return None
        query = queries.last_within(self._keys[partition], low, high)
        documents = await self._calls.read(lambda: fetch(self._database, query))
        return int(documents[0]["t"]) if documents else None

    # --- streams ----------------------------------------------------------------------------------

    async def streams(self, *, after: str, limit: int) -> Sequence[StreamInfo]:
        """See `EventStore.streams`."""
        query = queries.streams_after(after, limit=limit)
        return self._infos(await self._calls.read(lambda: fetch(self._database, query)))

    async def stream(self, name: str) -> StreamInfo | None:
        """See `EventStore.stream`."""
        query = queries.streams_named([name])
        infos = self._infos(await self._calls.read(lambda: fetch(self._database, query)))
        return infos[0] if infos else None

    async def create_stream(self, name: str, *, spread: int) -> StreamInfo:
        """See `EventStore.create_stream`."""
        try:
            await self.admit({name: spread})
        except StaleStream:
            raise StreamConflict("the stream exists with another spread") from None
        info = await self.stream(name)
        if info is None:
            raise Unavailable("the stream is not there although it was created")
        return info

    async def admit(self, spreads: Mapping[str, int]) -> None:
        """See `EventStore.admit`."""
        unknown = self._spreads.check(spreads)
        if not unknown:
            return
        stored = await self._read_spreads(unknown)
        absent = [name for name in unknown if name not in stored]
        if absent:
            now = self._clock.unix_ms()
            requests = [
                UpdateOne({"_id": name}, {"$setOnInsert": {"spread": spreads[name], "created": now}}, upsert=True)
                for name in absent
            ]
            await self._create(requests)
            # Whoever else created one of them at the same time may have been first.
            stored |= await self._read_spreads(absent)
        self._spreads.learn(stored)
        if still := self._spreads.check(spreads):
            raise Unavailable(f"{len(still)} streams are not there although they were created")

    async def _create(self, requests: Sequence[UpdateOne]) -> None:
        collection = self._database[STREAMS]
        for is_last in (False, True):
            try:
                await self._calls.write(lambda: collection.bulk_write(requests, ordered=False))
            except DuplicateKeyError:
                if is_last:
                    raise
            else:
                return

    async def _read_spreads(self, names: Iterable[str]) -> dict[str, int]:
        query = queries.spreads_of(list(names))
        documents = await self._calls.read(lambda: fetch(self._database, query))
        return {document["_id"]: int(document["spread"]) for document in documents}

    def _infos(self, documents: Iterable[Document]) -> list[StreamInfo]:
        return [stream_info(document, self._counters) for document in documents]

    # --- checkpoints ------------------------------------------------------------------------------

    async def _checkpoint(self, partition: int, wanted: int) -> int:
        """The partition's checkpoint, or one it once had if that is not below ``wanted``."""
        if self._known[partition] < wanted:
            await self._learn_checkpoints([self._keys[partition]])
        return self._known[partition]

    async def _learn_checkpoints(self, keys: Sequence[bytes]) -> None:
        query = queries.checkpoints_of(keys)
        for document in await self._calls.read(lambda: fetch(self._database, query)):
            partition = partition_of_key(document["_id"])
            self._known[partition] = max(self._known[partition], int(document["next"]))
