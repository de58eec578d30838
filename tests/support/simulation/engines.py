"""Model engines for the simulation: log, store and registry as their ports allow them to behave at their worst.

The state is shared by all; every process has its own handle on it, through which its calls stop when the process is
stopped, fail when it is dead, and are dropped, delayed, or cut off on either side of the deed as the weather has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from shared.errors import Gone, InternalError, OutcomeUnknown, StaleStream, StreamConflict, Unavailable
from shared.ports import Beat, Member
from shared.position import Epoch
from shared.records import (
    Duplicate,
    Entry,
    Expiry,
    FeedBatch,
    HistoryPage,
    LogBatch,
    NewEvent,
    PageQuery,
    Record,
    StreamInfo,
)

if TYPE_CHECKING:
    from simulation.world import Process, World

BEAT = 0.3
BEAT_TTL = 5.0


class Log:
    """What is in the log."""

    def __init__(self, world: World, partitions: int, *, decides_identity: bool) -> None:
        self.world = world
        self.epoch = Epoch(1, world.seed & 0xFFFFFFFF)
        self.partitions = partitions
        self.decides_identity = decides_identity
        self.records: dict[int, list[Record]] = {partition: [] for partition in range(partitions)}
        self.ends: dict[int, int] = dict.fromkeys(range(partitions), 0)
        self.places: dict[bytes, Record] = {}
        self.spreads: dict[str, int] = {}
        """What streams exist, with what spread, where the log is the store too."""
        self.kept: dict[int, int] = dict.fromkeys(range(partitions), 0)
        """Partition → first record that can still be read. All stay in ``records``, to judge by."""
        self.is_away = False
        self.grown = asyncio.Event()

    def write(self, partition: int, events: Sequence[NewEvent], base: int, who: str) -> list[Entry]:
        """Append, all at once."""
        entries = [self._write(partition, event, base) for event in events]
        self.world.trace("log", who, partition, base, self.ends[partition], [e.value[-24:] for e in events])
        self.wake()
        return entries

    def wake(self) -> None:
        """Have all readers look again."""
        self.grown.set()
        self.grown = asyncio.Event()

    def _write(self, partition: int, event: NewEvent, base: int) -> Entry:
        known = self.places.get(event.identity)
        if known is not None:
            same = known.value == event.value and known.key == event.key
            return Duplicate(known.partition, known.offset, known.append_ms, same)
        if not self.decides_identity and self.world.random.random() < 0.02:
            self.ends[partition] += 1  # a record that is not ours takes an offset
        record = Record(
            partition, self.ends[partition], self.world.clock.unix_ms(), event.identity, event.stream, event.key,
            event.value, event.data_at, event.kind, event.accepted_ms, base,
        )  # fmt: skip
        self.records[partition].append(record)
        self.ends[partition] += 1
        if self.decides_identity:
            self.places[event.identity] = record
            return None
        return record.offset

    def trim(self, partition: int, below: int) -> None:
        """Let go of what is below, or of a part of it."""
        start, chaos = self.kept[partition], self.world.weather
        if below > start:
            self.kept[partition] = start + chaos.piece(below - start)
            self.world.trace("trim", partition, self.kept[partition])

    def show_again(self) -> None:
        """As brokers do that fall over soon after they deleted something."""
        for partition, start in self.kept.items():
            if start and not self.decides_identity:
                self.kept[partition] = self.world.random.randint(0, start)
                self.world.trace("show again", partition, self.kept[partition])

    def visible(self, partition: int, window: int) -> list[Record]:
        """What subscribers must see; the rule as it is written, worked out anew here."""
        if self.decides_identity:
            return list(self.records[partition])
        shown: list[Record] = []
        solid: list[Record] = []
        for record in self.records[partition]:
            if record.base < 0 or record.offset - record.base > window:
                continue
            near = (s for s in reversed(solid) if s.offset >= record.offset - window)
            if not any(s.identity == record.identity for s in near):
                shown.append(record)
            solid.append(record)
        return shown


class LogHandle:
    """`shared.ports.EventLog` of one process."""

    def __init__(self, log: Log, process: Process) -> None:
        self._log = log
        self._process = process
        self.epoch = log.epoch
        self.partitions = log.partitions
        self.decides_identity = log.decides_identity

    async def append(self, partition: int, events: Sequence[NewEvent], *, base: int) -> Sequence[Entry]:
        log, world, chaos = self._log, self._log.world, self._log.world.weather
        who = self._process.name
        await self._process.call(chaos.delay())
        if log.is_away or chaos.hits(chaos.refuse):
            raise Unavailable("the log is away")
        if log.decides_identity and any(log.spreads.setdefault(e.stream, e.spread) != e.spread for e in events):
            raise StaleStream("another spread")
        if chaos.hits(chaos.late):
            # The batch is on its way, and nobody knows when it will land.
            batch = list(events)
            world.loop.call_later(chaos.lateness(), log.write, partition, batch, base, f"{who} late")
            await self._process.call(chaos.delay())
            raise OutcomeUnknown("no answer")
        entries = log.write(partition, events, base, who)
        await self._process.call(chaos.delay())
        if chaos.hits(chaos.unanswered):
            raise OutcomeUnknown("no answer")
        return entries

    def tail(self, positions: Mapping[int, int]) -> TailHandle:
        return TailHandle(self._log, self._process, dict(positions))

    async def ends(self) -> Mapping[int, int]:
        await self._process.call(self._log.world.weather.delay())
        if self._log.is_away:
            raise Unavailable("the log is away")
        return dict(self._log.ends)

    async def starts(self) -> Mapping[int, int]:
        await self._process.call(0)
        return dict(self._log.kept)

    async def firsts(self) -> Mapping[int, tuple[int, int]]:
        await self._process.call(0)
        found: dict[int, tuple[int, int]] = {}
        for partition, records in self._log.records.items():
            first = next((record for record in records if record.offset >= self._log.kept[partition]), None)
            if first is not None:
                found[partition] = first.offset, first.append_ms
        return found

    async def trim(self, below: Mapping[int, int]) -> None:
        log, world = self._log, self._log.world
        await self._process.call(world.weather.delay())
        if log.is_away or world.weather.hits(world.weather.refuse):
            raise Unavailable("the log is away")
        for partition, offset in below.items():
            if offset > world.store.checkpoints[partition] - world.window:
                world.verdict.add("lost", f"partition {partition}: trimmed to {offset}, which is too far")
            log.trim(partition, offset)
        if not world.is_healing and world.random.random() < 0.3:
            world.loop.call_later(world.random.random() * 3, log.show_again)


class TailHandle:
    """`shared.ports.LogTail`."""

    def __init__(self, log: Log, process: Process, positions: dict[int, int]) -> None:
        self._log = log
        self._process = process
        self.positions = positions

    async def poll(self, *, max_records: int, timeout: float) -> Sequence[LogBatch]:
        log, chaos = self._log, self._log.world.weather
        deadline = log.world.loop.now + timeout
        while True:
            grown = log.grown
            await self._process.call(0)
            found = [] if log.is_away or self._process.is_blind else self._read(max_records)
            if found:
                await self._process.call(chaos.delay())
                return found
            left = deadline - log.world.loop.now
            if left <= 0:
                return []
            if chaos.hits(chaos.tail_break):
                if chaos.random.random() < 0.5:
                    raise asyncio.CancelledError  # what a client may let through; nobody wants this task to end
                raise Unavailable("the reader was thrown out")
            try:
                async with asyncio.timeout(left):
                    await grown.wait()
            except TimeoutError:
                continue

    def _read(self, most: int) -> list[LogBatch]:
        found: list[LogBatch] = []
        chaos = self._log.world.weather
        for partition, start in self.positions.items():
            end = self._log.ends[partition]
            if start < self._log.kept[partition]:
                raise Gone("deleted", partition=partition, start=self._log.kept[partition])
            if start >= end:
                continue
            ahead = [record for record in self._log.records[partition] if record.offset >= start]
            piece = chaos.piece(min(most, len(ahead))) if ahead else 0
            taken = ahead[:piece]
            upto = end if piece == len(ahead) else taken[-1].offset + 1
            self.positions[partition] = upto
            found.append(LogBatch(partition, start, upto, taken))
        return found

    def seek(self, partition: int, offset: int) -> None:
        self.positions[partition] = offset

    def forget(self, partition: int) -> None:
        self.positions.pop(partition, None)

    async def close(self) -> None:
        self.positions = {}


def _deleted(start: int, stop: int, floor: int) -> list[tuple[int, int]]:
    return [(start, min(stop, floor))] if start < min(stop, floor) else []


class Store:
    """What is in the store (where it is not the log): a document or a stub for each offset, and checkpoints."""

    def __init__(self, world: World, log: Log) -> None:
        self.world = world
        self.log = log
        self.documents: dict[int, dict[int, Record | None]] = {partition: {} for partition in log.records}
        self.checkpoints: dict[int, int] = dict.fromkeys(log.records, 0)
        self.floors: dict[int, int] = log.kept if log.decides_identity else dict.fromkeys(log.records, 0)
        """What is below is not shown any more; it stays in ``documents``, to judge by and for copies of it."""
        self.is_away = False

    def put(self, partition: int, offset: int, record: Record | None) -> None:
        """One document. That two writers disagree about one is a fault of the product."""
        documents = self.documents[partition]
        if offset in documents:
            if documents[offset] != record:
                self.world.verdict.add("inconsistent", f"partition {partition}: two documents for {offset}")
            return
        documents[offset] = record

    def expire(self, expiry: Expiry) -> bool:
        """Raise some floors."""
        chaos, is_more = self.world.weather, False
        for partition, floor in self.floors.items():
            old = [r.offset for r in self.known(partition) if r.offset >= floor and r.append_ms < expiry.before_ms]
            if old:
                self.floors[partition] = old[chaos.piece(len(old)) - 1] + 1
                self.world.trace("expire", partition, self.floors[partition])
                is_more = True
        return is_more

    def kept(self, partition: int) -> list[Record]:
        """What is shown."""
        floor = self.floors[partition]
        return [record for record in self.known(partition) if record.offset >= floor]

    def known(self, partition: int) -> list[Record]:
        """What copies are compared with."""
        checkpoint = self.checkpoints[partition]
        if self.log.decides_identity:
            return list(self.log.records[partition])
        found = [record for offset, record in self.documents[partition].items() if record and offset < checkpoint]
        return sorted(found, key=lambda record: record.offset)


class StoreHandle:
    """`shared.ports.EventStore` of one process."""

    def __init__(self, store: Store, process: Process) -> None:
        self._store = store
        self._process = process
        self._seen: dict[str, int] = {}
        self.is_log = store.log.decides_identity

    async def _reach(self) -> None:
        chaos = self._store.world.weather
        await self._process.call(chaos.delay())
        if (self._store.is_away and not self.is_log) or (self.is_log and self._store.log.is_away):
            raise Unavailable("the store is away")
        if chaos.hits(chaos.refuse):
            raise Unavailable("the store is busy")

    def _checkpoints(self) -> dict[int, int]:
        return dict(self._store.log.ends if self.is_log else self._store.checkpoints)

    async def checkpoints(self) -> Mapping[int, int]:
        await self._reach()
        return self._checkpoints()

    async def page(self, query: PageQuery) -> HistoryPage:
        await self._reach()
        floor, stop = self._store.floors[query.partition], min(query.stop, self._checkpoints()[query.partition])
        kept = [
            record
            for record in self._store.kept(query.partition)
            if query.start <= record.offset < stop and (query.streams is None or record.stream in query.streams)
        ]
        taken: list[Record] = []
        for record in reversed(kept) if query.backwards else kept:
            if len(taken) >= query.limit or sum(len(r.value) for r in taken) >= query.max_bytes:
                following = record.offset + 1 if query.backwards else record.offset
                break
            taken.append(record)
        else:
            following = query.start if query.backwards else stop
        covered = (following, stop) if query.backwards else (query.start, following)
        return HistoryPage(taken, following, [], _deleted(*covered, floor))

    async def find(self, stream: str, event_id: str, source: str | None) -> Sequence[Record]:
        raise NotImplementedError

    async def offset_at(self, append_ms: int) -> Mapping[int, int]:
        await self._reach()
        floors = self._store.floors
        return {
            partition: next(
                (r.offset for r in self._store.kept(partition) if r.append_ms >= append_ms),
                max(checkpoint, floors[partition]),
            )
            for partition, checkpoint in self._checkpoints().items()
        }

    async def append_time(self, partition: int, offset: int) -> int | None:
        await self._reach()
        times = [record.append_ms for record in self._store.kept(partition) if record.offset <= offset]
        return times[-1] if times else None

    async def streams(self, *, after: str, limit: int) -> Sequence[StreamInfo]:
        await self._reach()
        spreads = sorted(self._store.log.spreads.items())
        return [StreamInfo(name, spread, 0) for name, spread in spreads if name > after][:limit]

    async def stream(self, name: str) -> StreamInfo | None:
        await self._reach()
        spread = self._store.log.spreads.get(name)
        return None if spread is None else StreamInfo(name, spread, 0)

    async def create_stream(self, name: str, *, spread: int) -> StreamInfo:
        await self._reach()
        if self._store.log.spreads.setdefault(name, spread) != spread:
            raise StreamConflict("another spread")
        return StreamInfo(name, spread, 0)

    async def starts(self) -> Mapping[int, int]:
        await self._reach()
        return dict(self._store.floors)

    async def expire(self, expiry: Expiry) -> bool:
        await self._reach()
        is_more = self._store.expire(expiry)
        if self._store.world.weather.hits(self._store.world.weather.unanswered):
            raise OutcomeUnknown("no answer")
        return is_more

    async def give_up(self, partition: int, start: int, stop: int) -> None:
        self._store.world.verdict.add("lost", f"partition {partition}: [{start}, {stop}) is given up")

    async def persist(self, *batches: FeedBatch) -> None:
        for batch in batches:
            await self._persist(batch)

    async def _persist(self, batch: FeedBatch) -> None:
        store, chaos = self._store, self._store.world.weather
        await self._reach()
        partition = batch.partition
        if batch.start > store.checkpoints[partition]:
            raise InternalError(f"{batch.start} is above the checkpoint {store.checkpoints[partition]}: a hole")
        visible = {record.offset: record for record in batch.records}
        offsets = list(range(batch.start, batch.next))
        store.world.random.shuffle(offsets)  # unordered inserts
        cut = chaos.hits(chaos.unanswered)
        for offset in offsets[: len(offsets) // 2] if cut else offsets:
            store.put(partition, offset, visible.get(offset))
        await self._process.call(chaos.delay())
        if cut:
            raise OutcomeUnknown("no answer")
        store.checkpoints[partition] = max(store.checkpoints[partition], batch.next)
        store.world.trace("persist", self._process.name, partition, batch.start, batch.next)
        if chaos.hits(chaos.unanswered):
            raise OutcomeUnknown("no answer")

    async def lookup(self, partition: int, events: Sequence[NewEvent]) -> Mapping[bytes, Duplicate]:
        await self._reach()
        wanted = {event.identity: event for event in events}
        found: dict[bytes, Duplicate] = {}
        for record in self._store.known(partition):
            event = wanted.get(record.identity)
            if event is not None:
                same = record.value == event.value and record.key == event.key
                found[record.identity] = Duplicate(partition, record.offset, record.append_ms, same)
        await self._process.call(self._store.world.weather.delay())
        return found

    async def admit(self, spreads: Mapping[str, int]) -> None:
        if all(self._seen.get(name) == spread for name, spread in spreads.items()):
            return
        await self._reach()
        for name, spread in spreads.items():
            if self._store.log.spreads.setdefault(name, spread) != spread:
                raise StaleStream("another spread")
        self._seen.update(spreads)


class Registry:
    """Set and heartbeats. Nodes beat by themselves here, as long as they run; gateways through their handle."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.set: dict[str, Member] = {}
        self.map: dict[str, tuple[Beat, float]] = {}
        self.is_away = False

    def beats(self) -> dict[str, Beat]:
        now = self.world.loop.now
        for process in self.world.nodes:
            if process.member is not None and process.seen_at is not None:
                at = now if process.is_running else process.seen_at
                state = "draining" if process.is_draining else "live"
                beat = Beat(int((at - process.born) / BEAT) + 1, state, 0, 0, 0, 0, 0, 0, 0)
                self.map[process.member.key] = (beat, at)
        return {key: beat for key, (beat, at) in self.map.items() if now - at < BEAT_TTL}


class RegistryHandle:
    """`shared.ports.NodeRegistry` of one gateway."""

    def __init__(self, registry: Registry, process: Process) -> None:
        self._registry = registry
        self._process = process

    async def _reach(self) -> None:
        await self._process.call(0.0005)
        if self._registry.is_away:
            raise Unavailable("the registry is away")

    async def join(self, of: Member) -> None:
        await self._reach()
        self._registry.set[of.key] = of

    async def leave(self, of: Member) -> None:
        await self._reach()
        self._registry.set.pop(of.key, None)
        self._registry.map.pop(of.key, None)

    async def beat(self, key: str, beat: Beat) -> Mapping[str, Beat]:
        await self._reach()
        self._registry.map[key] = (msgspec.structs.replace(beat), self._registry.world.loop.now)
        return await self.beats()

    async def members(self) -> Sequence[Member]:
        await self._reach()
        return list(self._registry.set.values())

    async def beats(self) -> Mapping[str, Beat]:
        await self._reach()
        return self._registry.beats()
