"""What one transaction writes: the records of many appends, at their offsets, and the answers to those who asked. Pure.

Adding an append costs a few dictionary and list operations for all of its events together, as long as none of them is
a duplicate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shared.backends.embedded.batches import cut, encode_batch
from shared.backends.embedded.reading import Original, PartitionEnd
from shared.backends.embedded.schema import place_of
from shared.errors import StaleStream
from shared.records import Duplicate, LogBatch, NewEvent, Record


@dataclass(slots=True)
class Stream:
    """What an append must know of a stream."""

    number: int
    spread: int


@dataclass(slots=True)
class LogState:
    """The log's state as of a commit, as far as an append must know it."""

    ends: dict[int, PartitionEnd]
    next_stream: int
    """Number of the next new stream."""
    streams: dict[str, Stream] = field(default_factory=dict[str, Stream])
    """Streams that are known; the file may hold others. A stream never changes, so they stay true."""


class Rows:
    """What goes into the tables, as tuples in the order of their columns."""

    __slots__ = ("batches", "identities", "places", "stream_batches", "stream_ends", "streams")

    def __init__(self) -> None:
        self.streams: list[tuple[int, str, int, int]] = []
        self.identities: list[bytes] = []
        self.places: list[int] = []
        """Where the identities are."""
        self.batches: list[tuple[int, int, int, int, bytes]] = []
        self.stream_batches: list[tuple[int, int, int]] = []
        self.stream_ends: list[tuple[int, int, int, int, int]] = []


class Plan:
    """Collects appends until they are written."""

    def __init__(self, state: LogState, now_ms: int) -> None:
        self._state = state
        self._now_ms = now_ms
        self._planned: dict[bytes, Record] = {}
        self.records: dict[int, list[Record]] = {}
        """Partition → new records."""
        self.streams: dict[str, Stream] = {}
        """New streams."""

    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not self.records and not self.streams

    def stream(self, name: str) -> Stream | None:
        """A stream that exists, or will once this is written."""
        return self._state.streams.get(name) or self.streams.get(name)

    def create_stream(self, name: str, spread: int) -> None:
        """Write a new stream."""
        self.streams[name] = Stream(self._state.next_stream + len(self.streams), spread)

    def append(
        self, partition: int, events: Sequence[NewEvent], *, base: int, stored: Mapping[bytes, Original]
    ) -> list[Duplicate | None]:
        """Write these events, as far as they are not among the stored or the planned ones.

        Raises `StaleStream`, and then writes nothing.
        """
        if len(events) == 1:
            return [self._append_one(partition, events, base, stored)]
        self._check_spreads(events)
        answers: list[Duplicate | None] = [None] * len(events)
        identities = {event.identity for event in events}
        fresh: Sequence[NewEvent] = events
        if (
            len(identities) < len(events)
            or not self._planned.keys().isdisjoint(identities)
            or not stored.keys().isdisjoint(identities)
        ):
            fresh = self._without_duplicates(partition, events, answers, stored)
        if fresh:
            self._place(partition, fresh, base)
        # duplicates within this very call are answered once their originals have a place
        for index, event in enumerate(events if len(fresh) < len(events) else ()):
            answer = answers[index]
            if answer is not None and answer.offset < 0:
                answers[index] = Original.of(self._planned[event.identity]).duplicate(event)
        return answers

    def rows(self) -> Rows:
        """Everything that is to be written."""
        rows = Rows()
        rows.streams = [(stream.number, name, stream.spread, self._now_ms) for name, stream in self.streams.items()]
        for partition, records in self.records.items():
            counts: dict[str, int] = {}
            last: dict[str, Record] = {}
            for row in cut(records):
                first = row[0]
                place = place_of(partition, first.offset)
                body = encode_batch(row)
                rows.batches.append((place, first.append_ms, len(row), len(body), body))
                in_row: dict[str, int] = {}
                for record in row:
                    name = record.stream
                    in_row[name] = in_row.get(name, 0) + 1
                    last[name] = record
                for name, count in in_row.items():
                    counts[name] = counts.get(name, 0) + count
                    rows.stream_batches.append((self._number(name), place, count))
            for name, record in last.items():
                rows.stream_ends.append((self._number(name), partition, counts[name], record.offset, record.append_ms))
            rows.identities += [record.identity for record in records]
            start = place_of(partition, records[0].offset)
            rows.places += range(start, start + len(records))
        return rows

    def committed(self) -> list[LogBatch]:
        """Take over into the state what has been written, and return it as a tail sees it."""
        state = self._state
        state.streams.update(self.streams)
        state.next_stream += len(self.streams)
        batches: list[LogBatch] = []
        for partition, records in self.records.items():
            end = state.ends[partition]
            batch = LogBatch(partition, end.next, end.next + len(records), records)
            state.ends[partition] = PartitionEnd(end.first, batch.next, records[-1].append_ms)
            batches.append(batch)
        return batches

    def _append_one(
        self, partition: int, events: Sequence[NewEvent], base: int, stored: Mapping[bytes, Original]
    ) -> Duplicate | None:
        (event,) = events
        known = self.stream(event.stream)
        if known is not None and known.spread != event.spread:
            raise StaleStream(f"the stream's spread is {known.spread}, not {event.spread}")
        first = self._original(event, stored)
        if first is not None:
            return first.duplicate(event)
        self._place(partition, events, base)
        return None

    def _check_spreads(self, events: Sequence[NewEvent]) -> None:
        wanted: dict[str, int] = {}
        for name, spread in {(event.stream, event.spread) for event in events}:
            known = self.stream(name)
            expected = known.spread if known is not None else wanted.setdefault(name, spread)
            if spread != expected:
                raise StaleStream(f"the stream's spread is {expected}, not {spread}")

    def _place(self, partition: int, events: Sequence[NewEvent], base: int) -> None:
        for name, spread in {(event.stream, event.spread): None for event in events}:
            if self.stream(name) is None:
                self.create_stream(name, spread)
        end = self._state.ends[partition]
        append_ms = max(self._now_ms, end.last_ms)
        placed = self.records.setdefault(partition, [])
        records = [
            Record(
                partition,
                offset,
                append_ms,
                event.identity,
                event.stream,
                event.key,
                event.value,
                event.data_at,
                event.kind,
                event.accepted_ms,
                base,
            )
            for offset, event in enumerate(events, end.next + len(placed))
        ]
        placed += records
        for record in records:
            self._planned[record.identity] = record

    def _without_duplicates(
        self,
        partition: int,
        events: Sequence[NewEvent],
        answers: list[Duplicate | None],
        stored: Mapping[bytes, Original],
    ) -> list[NewEvent]:
        fresh: dict[bytes, NewEvent] = {}
        for index, event in enumerate(events):
            first = self._original(event, stored)
            if first is not None:
                answers[index] = first.duplicate(event)
            elif event.identity in fresh:
                answers[index] = Duplicate(partition, -1, 0, same_body=False)
            else:
                fresh[event.identity] = event
        return list(fresh.values())

    def _original(self, event: NewEvent, stored: Mapping[bytes, Original]) -> Original | None:
        planned = self._planned.get(event.identity)
        return stored.get(event.identity) if planned is None else Original.of(planned)

    def _number(self, name: str) -> int:
        stream = self.stream(name)
        assert stream is not None
        return stream.number
