"""What can still be read of a ``log.db``, sound or damaged. Changes nothing.

A page of the file that cannot be read hides the rows in it, not those behind it: they are looked for in leaps. What a
row holds is believed only if it is what a node wrote: contiguous records, each with the hash of its own identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import apsw
import msgspec
import orjson

from shared.backends.embedded.batches import MAX_BATCH_RECORDS, Shadow, decode_batch, decode_shadows
from shared.backends.embedded.database import Database, texts
from shared.backends.embedded.schema import OFFSET_BITS, offset_in, partition_at, place_of
from shared.events import attributes_of
from shared.partitioning import partitions_of_stream
from shared.position import Epoch
from shared.records import Record, prefixes_of
from shared.recovered import Findings


class Batch(NamedTuple):
    """A sound row of ``batches``."""

    place: int
    append_ms: int
    records: list[Record]


class Shadows(NamedTuple):
    """A sound row of ``shadows``."""

    place: int
    append_ms: int
    until_ms: int
    body: bytes
    shadows: list[Shadow]


class Salvage:
    """Reads a log through a connection of its own."""

    def __init__(self, db: Database, *, partitions: int, is_guess: bool) -> None:
        """``partitions``: how many there are, where the file itself does not say it; ``is_guess``: perhaps."""
        self._db = db
        meta: Mapping[str, int] = self._table("SELECT json_group_object(name, value) FROM meta") or {}
        self.epoch: Epoch | None = None
        if {"epoch_ordinal", "epoch_random", "partitions"} <= meta.keys():
            self.epoch = Epoch(meta["epoch_ordinal"], meta["epoch_random"])
        self.partitions = int(meta.get("partitions", partitions))
        self.created_ms = int(meta.get("created_ms", 0))
        self.streams: Mapping[str, list[int]] = self._table(_STREAMS) or {}
        """Name → spread, created_ms."""
        self.floors: list[list[int]] = self._table(_FLOORS) or []
        """Partition, floor, last_ms."""
        self.former: list[list[int]] = self._table(_EPOCHS) or []
        """Ordinal, random, partition, stop."""
        self.holes: list[list[int]] = self._table(_HOLES) or []
        """Place, stop."""
        self._is_guess = is_guess and "partitions" not in meta
        self.is_at_home = True
        """Whether the events that were looked at stand where a guessed number of partitions puts them."""

    def _table(self, question: str) -> Any:
        """The answer, which is JSON; None where it cannot be read."""
        try:
            return orjson.loads(self._db.ask(question))
        except (apsw.Error, orjson.JSONDecodeError):
            return None

    def inspect(self) -> Findings:
        """Read everything."""
        found = Findings(self.epoch, self.partitions, self.created_ms, self._damage())
        found.holes = [(partition_at(place), offset_in(place), stop) for place, stop in self.holes]
        floors = {partition: floor for partition, floor, _ in self.floors}
        for partition in range(self.partitions):
            at = found.floors[partition] = floors.get(partition, 0)
            known = {start: stop for p, start, stop in found.holes if p == partition}
            for batch in self.batches(partition):
                first = offset_in(batch.place)
                at = _behind_holes(at, known)
                if self._is_guess:
                    self.is_at_home = self.is_at_home and self._stands_at_home(batch.records[0])
                if first > at:
                    found.lost.append((partition, at, first))
                at = first + len(batch.records)
                found.events += len(batch.records)
                if not found.damage and not self._are_known(batch):
                    found.damage = f"the identities of partition {partition} from {first} on are not there"
            found.ends[partition] = _behind_holes(at, known)
        found.damage = found.damage or self._disagreement(found.ends)
        return found

    def _stands_at_home(self, record: Record) -> bool:
        spread = self.streams.get(record.stream, [self.partitions])[0]
        return record.partition in partitions_of_stream(record.stream, partitions=self.partitions, spread=spread)

    def _are_known(self, batch: Batch) -> bool:
        """Whether the log would find these again by their identities."""
        identities = texts([record.identity for record in batch.records])
        stop = batch.place + len(batch.records)
        try:
            return bool(self._db.ask(_KNOWN, (identities, batch.place, stop)) == len(batch.records))
        except apsw.Error:
            return False

    def _disagreement(self, ends: Mapping[int, int]) -> str:
        """What one table has and another has not: then one of them is older, and what is appended would clash."""
        stops = orjson.dumps(list(ends.items())).decode()
        try:
            beyond = self._db.ask(_BEYOND, (OFFSET_BITS, stops))
            counts: list[int] = orjson.loads(self._db.ask(_COUNTS))
        except apsw.Error as error:
            return str(error)
        if beyond:
            return f"{beyond} identities stand beyond the end of their partition"
        if len(set(counts)) > 1:
            return "tables disagree on the number of events: {}, by streams {} and {}".format(*counts)
        return ""

    def _damage(self) -> str:
        try:
            finding = str(self._db.setting("integrity_check", 1))
        except apsw.Error as error:
            return str(error)
        return "" if finding == "ok" else finding.replace("\n", " ")

    def batches(self, partition: int) -> Iterator[Batch]:
        """The sound rows of a partition, in order."""
        for place, append_ms, _, body in self._rows("batches", "size", partition):
            if (records := _sound(place, body)) is not None:
                yield Batch(place, append_ms, records)

    def shadows(self, partition: int) -> Iterator[Shadows]:
        """The readable shadows of a partition, in order."""
        for place, append_ms, until_ms, body in self._rows("shadows", "until_ms", partition):
            try:
                yield Shadows(place, append_ms, until_ms, body, decode_shadows(body))
            except msgspec.MsgspecError:
                continue

    def _rows(self, table: str, column: str, partition: int) -> Iterator[tuple[int, int, int, bytes]]:
        whole = f"SELECT place, append_ms, {column}, records, body FROM {table} {_FROM}"  # noqa: S608  (constants)
        head = f"SELECT place, records FROM {table} {_FROM}"  # noqa: S608
        at, stop = place_of(partition, 0), place_of(partition + 1, 0)
        while at < stop:
            found = self._try(whole, at, stop)
            if found is None:
                return
            if found is not _UNREADABLE:
                place, append_ms, number, records, body = found
                yield place, append_ms, number, body
            else:
                # The row itself may be fine, and only its body lost.
                found = self._leap(lambda x: self._try(head, x, stop), at, stop)
                if found is None:
                    return
                place, records = found
                if place > at:
                    at = place
                    if self._try(whole, at, stop) is not _UNREADABLE:
                        continue
            at = place + min(max(records, 1), MAX_BATCH_RECORDS)

    def _try(self, statement: str, at: int, stop: int) -> Any:
        try:
            return self._db.ask(statement, (at, stop))
        except apsw.Error:
            return _UNREADABLE

    @staticmethod
    def _leap(ask: Callable[[int], Any], at: int, stop: int) -> Any:
        """The first row from ``at`` on that can be read."""
        low, step = at, 1
        while (found := ask(at)) is _UNREADABLE:
            low, at = at, at + step
            step *= 2
            if at >= stop:
                return None
        high = at
        while high - low > 1:
            middle = (low + high) // 2
            if (nearer := ask(middle)) is _UNREADABLE:
                low = middle
            else:
                high, found = middle, nearer
        return found


def _behind_holes(at: int, holes: Mapping[int, int]) -> int:
    while at in holes:
        at = holes[at]
    return at


def _sound(place: int, body: bytes) -> list[Record] | None:
    try:
        records = decode_batch(body)
        for number, record in enumerate(records):
            attributes = attributes_of(record)
            known = prefixes_of(record.stream, str(attributes["id"]), str(attributes["source"]))
            if place_of(record.partition, record.offset) != place + number or record.identity not in known:
                return None
            _json.decode(record.value)
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError, IndexError):
        return None
    return records or None


_json = msgspec.json.Decoder(msgspec.Raw)
_UNREADABLE: Final = object()
_FROM: Final = "WHERE place >= ? AND place < ? ORDER BY place LIMIT 1"
_STREAMS: Final = "SELECT json_group_object(name, json_array(spread, created_ms)) FROM streams"
_FLOORS: Final = "SELECT json_group_array(json_array(partition, floor, last_ms)) FROM floors"
_EPOCHS: Final = "SELECT json_group_array(json_array(ordinal, random, partition, stop)) FROM epochs"
_KNOWN: Final = """
SELECT count(*) FROM identities WHERE identity IN (SELECT value FROM carray(?)) AND place >= ? AND place < ?
"""
_BEYOND: Final = """
WITH ends AS MATERIALIZED (SELECT value ->> 0 AS partition, value ->> 1 AS stop FROM json_each(?2))
SELECT count(*) FROM identities JOIN ends ON partition = place >> ?1 WHERE place >= (partition << ?1) + stop
"""
_COUNTS: Final = """
SELECT json_array((SELECT coalesce(sum(records), 0) FROM batches),
                  (SELECT coalesce(sum(records), 0) FROM stream_batches),
                  (SELECT coalesce(sum(events), 0) FROM stream_ends))
"""
_HOLES: Final = "SELECT json_group_array(json_array(place, stop)) FROM holes"
