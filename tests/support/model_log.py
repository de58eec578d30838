"""The log and store ports as small models in memory, for tests of what stands on them: with both answers to the
question who decides identity, and with hands on the places where a real log can stop, fail or fall behind."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from cdrs.judgement import Judge, Kind
from shared.errors import Gone, Unavailable
from shared.position import Epoch
from shared.records import (
    DataKind,
    Duplicate,
    Entry,
    FeedBatch,
    HistoryPage,
    LogBatch,
    NewEvent,
    PageQuery,
    Record,
    StreamInfo,
    identity_of,
)

STEP = 0.0005


def event(
    number: int | str, *, stream: str = "orders", data: bytes | None = None, key: str | None = None, fresh: bool = False
) -> NewEvent:
    """An event as a gateway would hand it over."""
    event_id = str(number)
    head = {"specversion": "1.0", "id": event_id, "source": "/test", "type": "edit", "cdrsstream": stream}
    body = orjson.dumps(head)[:-1] + b',"data":'
    payload = b'{"n":"%s"}' % event_id.encode() if data is None else data
    return NewEvent(
        identity=identity_of(stream, "/test", event_id),
        stream=stream,
        key=key,
        value=body + payload + b"}",
        data_at=len(body),
        kind=DataKind.JSON,
        accepted_ms=0,
        fresh=fresh,
    )


def events(numbers: Sequence[int], *, stream: str = "orders") -> list[NewEvent]:
    return [event(number, stream=stream) for number in numbers]


@dataclass
class ModelLog:
    """`shared.ports.EventLog`."""

    partitions: int = 3
    decides_identity: bool = True
    window: int = 64
    epoch: Epoch = field(default_factory=Epoch.create)
    records: dict[int, list[Record]] = field(default_factory=dict)
    places: dict[bytes, Record] = field(default_factory=dict)
    """Identity → record, where the log decides."""
    open_for_appends: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared: appends wait, as if the process was stopped on its way into the log."""
    open_for_tails: asyncio.Event = field(default_factory=asyncio.Event)
    append_errors: list[Exception | None] = field(default_factory=list)
    """Raised by the next appends, before anything is stored; None lets one through."""
    tail_errors: list[Exception] = field(default_factory=list)
    kept: dict[int, int] = field(default_factory=dict)
    """Partition → first offset that was not deleted."""
    begun: int = 0
    """Appends that have been called."""
    batches: list[int] = field(default_factory=list)
    """Sizes of the appends that went through."""

    def __post_init__(self) -> None:
        self.records = {partition: [] for partition in range(self.partitions)}
        self.open_for_appends.set()
        self.open_for_tails.set()

    async def append(self, partition: int, events: Sequence[NewEvent], *, base: int) -> Sequence[Entry]:
        self.begun += 1
        await asyncio.sleep(0)
        await self.open_for_appends.wait()
        error = self.append_errors.pop(0) if self.append_errors else None
        if error is not None:
            raise error
        self.batches.append(len(events))
        return [self.write(partition, event, base=base) for event in events]

    def write(self, partition: int, event: NewEvent, *, base: int) -> Entry:
        """Append one event, as any process may at any time."""
        known = self.places.get(event.identity)
        if known is not None:
            same = known.value == event.value and known.key == event.key
            return Duplicate(known.partition, known.offset, known.append_ms, same)
        records = self.records[partition]
        record = Record(
            partition, len(records), 1000 + len(records), event.identity, event.stream, event.key, event.value,
            event.data_at, event.kind, event.accepted_ms, base,
        )  # fmt: skip
        records.append(record)
        if self.decides_identity:
            self.places[event.identity] = record
            return None
        return record.offset

    def tail(self, positions: Mapping[int, int]) -> ModelTail:
        return ModelTail(self, dict(positions))

    async def ends(self) -> Mapping[int, int]:
        await asyncio.sleep(0)
        return {partition: len(records) for partition, records in self.records.items()}

    async def starts(self) -> Mapping[int, int]:
        return {partition: self.kept.get(partition, 0) for partition in self.records}

    def visible(self, partition: int) -> list[Record]:
        """What subscribers must see, by the reference reading of the whole log."""
        records = self.records[partition]
        if self.decides_identity:
            return list(records)
        judge = Judge(self.window, start=0, whole=True)
        verdicts = judge.judge(records, upto=len(records))
        return [r for r, verdict in zip(records, verdicts, strict=True) if verdict.kind is Kind.VISIBLE]


@dataclass
class ModelTail:
    """`shared.ports.LogTail`."""

    log: ModelLog
    positions: dict[int, int]

    async def poll(self, *, max_records: int, timeout: float) -> Sequence[LogBatch]:
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            if self.log.tail_errors:
                raise self.log.tail_errors.pop(0)
            found = self._read(max_records) if self.log.open_for_tails.is_set() else []
            if found or asyncio.get_running_loop().time() >= deadline:
                return found
            await asyncio.sleep(STEP)

    def _read(self, max_records: int) -> list[LogBatch]:
        found: list[LogBatch] = []
        for partition, start in self.positions.items():
            if start < self.log.kept.get(partition, 0):
                raise Gone("deleted", partition=partition, start=self.log.kept[partition])
            records = self.log.records[partition][start : start + max_records]
            if records:
                self.positions[partition] = start + len(records)
                found.append(LogBatch(partition, start, start + len(records), records))
        return found

    def seek(self, partition: int, offset: int) -> None:
        self.positions[partition] = offset

    def forget(self, partition: int) -> None:
        self.positions.pop(partition, None)

    async def close(self) -> None:
        self.positions = {}


@dataclass
class ModelStore:
    """`shared.ports.EventStore` over a `ModelLog`. It persists at once, unless ``persisted`` says how far it is."""

    log: ModelLog
    persisted: dict[int, int] | None = None
    created: dict[str, StreamInfo] = field(default_factory=dict)
    holes: list[tuple[int, int, int]] = field(default_factory=list)
    """What was given up: partition, start, stop."""
    pages: int = 0
    page_errors: list[Exception] = field(default_factory=list)
    looked_up: int = 0
    """Events that `lookup` was asked for."""

    async def checkpoints(self) -> Mapping[int, int]:
        return dict(self.persisted) if self.persisted is not None else await self.log.ends()

    def _kept(self, partition: int) -> list[Record]:
        records = self.log.records[partition]
        checkpoint = len(records) if self.persisted is None else self.persisted[partition]
        lost = [range(a, b) for p, a, b in self.holes if p == partition]
        return [
            record
            for record in self.log.visible(partition)
            if record.offset < checkpoint and not any(record.offset in each for each in lost)
        ]

    async def page(self, query: PageQuery) -> HistoryPage:
        await asyncio.sleep(0)
        self.pages += 1
        if self.page_errors:
            raise self.page_errors.pop(0)
        stop = min(query.stop, (await self.checkpoints())[query.partition])
        kept = [
            record
            for record in self._kept(query.partition)
            if query.start <= record.offset < stop and (query.streams is None or record.stream in query.streams)
        ]
        taken: list[Record] = []
        for record in reversed(kept) if query.backwards else kept:
            if len(taken) >= query.limit or sum(len(r.value) for r in taken) >= query.max_bytes:
                return HistoryPage(taken, record.offset + 1 if query.backwards else record.offset)
            taken.append(record)
        deleted = [(max(a, query.start), min(b, stop)) for p, a, b in self.holes if p == query.partition]
        deleted = [(first, last) for first, last in deleted if first < last]
        return HistoryPage(taken, query.start if query.backwards else stop, [], deleted)

    async def persist(self, *_batches: FeedBatch) -> None:
        if self.persisted is not None:
            raise Unavailable("this store stays where it was put")

    async def give_up(self, partition: int, start: int, stop: int) -> None:
        assert self.persisted is not None
        assert start <= self.persisted[partition]
        self.holes.append((partition, start, stop))
        self.persisted[partition] = max(self.persisted[partition], stop)

    async def find(self, stream: str, event_id: str, source: str | None) -> Sequence[Record]:
        found = [
            record
            for partition in self.log.records
            for record in self._kept(partition)
            if record.stream == stream and orjson.loads(record.value)["id"] == event_id
        ]
        return [r for r in found if source is None or orjson.loads(r.value)["source"] == source][:10]

    async def offset_at(self, append_ms: int) -> Mapping[int, int]:
        checkpoints = await self.checkpoints()
        return {
            partition: next((r.offset for r in self._kept(partition) if r.append_ms >= append_ms), checkpoint)
            for partition, checkpoint in checkpoints.items()
        }

    async def append_time(self, partition: int, offset: int) -> int | None:
        times = [record.append_ms for record in self._kept(partition) if record.offset <= offset]
        return times[-1] if times else None

    async def streams(self, *, after: str, limit: int) -> Sequence[StreamInfo]:
        return [info for name, info in sorted(self.created.items()) if name > after][:limit]

    async def stream(self, name: str) -> StreamInfo | None:
        return self.created.get(name)

    async def create_stream(self, name: str, *, spread: int) -> StreamInfo:
        return self.created.setdefault(name, StreamInfo(name, spread, 0))

    async def starts(self) -> Mapping[int, int]:
        return await self.log.starts()

    @property
    def is_log(self) -> bool:
        return self.log.decides_identity

    async def lookup(self, partition: int, events: Sequence[NewEvent]) -> Mapping[bytes, Duplicate]:
        self.looked_up += len(events)
        await asyncio.sleep(0)
        found: dict[bytes, Duplicate] = {}
        for event in events:
            for record in self._kept(partition):
                if record.identity == event.identity:
                    same = record.value == event.value and record.key == event.key
                    found[event.identity] = Duplicate(partition, record.offset, record.append_ms, same)
                    break
        return found

    async def admit(self, spreads: Mapping[str, int]) -> None:
        for name, spread in spreads.items():
            await self.create_stream(name, spread=spread)
