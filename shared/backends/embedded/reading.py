"""Questions to ``log.db``. Each is one statement that ends in one row, and is finished when its function returns.

One row, because the interpreter lock is given away and taken again at every row that SQLite hands out; on a busy event
loop that is a millisecond each. So lists leave SQLite as JSON, bodies joined into one blob.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import orjson

from shared.backends.embedded.batches import Shadow, decode_joined, decode_shadows
from shared.backends.embedded.database import Database, integers, texts
from shared.backends.embedded.schema import OFFSET_BITS, offset_in, partition_at, place_of
from shared.position import Epoch
from shared.records import IDENTITY_BYTES, Duplicate, FormerEpoch, NewEvent, Record, StreamInfo, fingerprint

GROUP_BYTES: Final = 2 * 1024 * 1024
"""Bodies that are read in one piece, in bytes (a single one may be larger)."""


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A row of ``batches`` without its body."""

    place: int
    records: int
    size: int
    """Bytes of the body."""
    matching: int
    """How many of its records are of the streams asked for."""


class PartitionEnd(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a partition stands."""

    first: int
    """Offset of the first record kept."""
    next: int
    last_ms: int


class Original(NamedTuple):
    """Where an identity stands, and what a copy is compared with."""

    partition: int
    offset: int
    append_ms: int
    body: Record | Shadow

    @classmethod
    def of(cls, record: Record) -> Original:
        """A record that is kept."""
        return cls(record.partition, record.offset, record.append_ms, record)

    def duplicate(self, event: NewEvent) -> Duplicate:
        """The answer for a copy."""
        body = self.body
        if isinstance(body, Record):
            same = body.value == event.value and body.key == event.key
        else:
            same = body.fingerprint == fingerprint(event.key, event.value)
        return Duplicate(self.partition, self.offset, self.append_ms, same)


_rows_decoder = msgspec.json.Decoder(list[Row])

_ENDS: Final = f"""
SELECT json_group_array(json_array(c.value, coalesce(f.floor, 0), f.last_ms, b.place, b.records, b.append_ms))
FROM carray(?) c
LEFT JOIN floors f ON f.partition = c.value
LEFT JOIN batches b ON b.place = (
    SELECT place FROM batches WHERE place < (c.value + 1) << {OFFSET_BITS} ORDER BY place DESC LIMIT 1)
    AND b.place >= c.value << {OFFSET_BITS}
WHERE f.partition IS NOT NULL OR b.place IS NOT NULL
"""  # noqa: S608  (constants)


def read_ends(db: Database, partitions: int) -> Mapping[int, PartitionEnd]:
    """Where all partitions stand at this moment."""
    found: dict[int, PartitionEnd] = dict.fromkeys(range(partitions), PartitionEnd(0, 0, 0))
    for partition, floor, floor_ms, last, records, append_ms in _json(db, _ENDS, (integers(range(partitions)),)):
        if last is None:
            found[partition] = PartitionEnd(floor, floor, floor_ms)
        else:
            found[partition] = PartitionEnd(floor, last - (partition << OFFSET_BITS) + records, append_ms)
    return found


# the row that holds the first place may begin below it
_HOLDS_FIRST: Final = """coalesce((
    SELECT place FROM (SELECT place, records FROM batches WHERE place <= ?1 ORDER BY place DESC LIMIT 1)
    WHERE place + records > ?1), ?1)"""
_ALL_ROWS: Final = f"""
SELECT json_group_array(json_array(place, records, size, records))
FROM (SELECT place, records, size FROM batches
      WHERE place >= {_HOLDS_FIRST} AND place < ?2 ORDER BY place {{order}} LIMIT ?3)
"""  # noqa: S608  (constants)
_STREAM_ROWS: Final = f"""
SELECT json_group_array(json_array(place, records, size, matching) ORDER BY place {{order}})
FROM (SELECT sb.place AS place, sum(sb.records) AS matching
      FROM carray(?4) c
      JOIN stream_batches sb ON sb.stream = c.value AND sb.place IN (
          SELECT place FROM stream_batches
          WHERE stream = c.value AND place >= {_HOLDS_FIRST} AND place < ?2 ORDER BY place {{order}} LIMIT ?3)
      GROUP BY sb.place ORDER BY sb.place {{order}} LIMIT ?3)
JOIN batches USING (place)
"""  # noqa: S608  (constants)
_SQL: Final = {
    (by_stream, backwards): text.format(order="DESC" if backwards else "ASC")
    for by_stream, text in ((False, _ALL_ROWS), (True, _STREAM_ROWS))
    for backwards in (False, True)
}


def read_rows(
    db: Database, first: int, stop: int, *, limit: int, streams: Sequence[int] | None = None, backwards: bool
) -> list[Row]:
    """The first (or last) rows that hold places in [first, stop), which lie in one partition; only those with records
    of these streams."""
    bindings: list[Any] = [first, stop, limit]
    if streams is not None:
        if not streams:
            return []
        bindings.append(integers(streams))
    return _rows_decoder.decode(db.ask(_SQL[streams is not None, backwards], bindings))


_BODIES: Final = """
SELECT CAST(group_concat(body, '') AS BLOB), group_concat(size)
FROM (SELECT body, size FROM batches WHERE place IN (SELECT value FROM carray(?)) ORDER BY place)
"""


def read_records(db: Database, rows: Sequence[Row]) -> list[Record]:
    """All records of these rows, ascending."""
    if not rows:
        return []
    bodies, lengths = db.ask(_BODIES, (integers([row.place for row in rows]),))
    return [] if bodies is None else decode_joined(bodies, lengths)


def read_range(db: Database, partition: int, start: int, stop: int, *, limit: int, max_bytes: int) -> list[Record]:
    """Records from ``start`` on below ``stop``, ascending, at most so many; fewer where their batches are larger than
    ``max_bytes``. Empty where ``start`` itself is not there."""
    rows = read_rows(db, place_of(partition, start), place_of(partition, stop), limit=limit, backwards=False)
    taken: list[Row] = []
    count = size = 0
    for row in rows:
        if taken and (count >= limit or size + row.size > max_bytes):
            break
        taken.append(row)
        size += row.size
        count += row.place + row.records - max(row.place, place_of(partition, start))
    records = read_records(db, taken)
    if not records or records[0].offset > start:
        return []
    skip = start - records[0].offset
    return records[skip : skip + min(limit, stop - start)]


_LOCATE: Final = """
SELECT json_group_array(json_array(place, records, size, 0)) FROM batches WHERE place IN (
    SELECT (SELECT b.place FROM batches b WHERE b.place <= c.value ORDER BY b.place DESC LIMIT 1) FROM carray(?) c)
"""


def read_places(db: Database, places: Sequence[int]) -> dict[int, Record]:
    """The records at these places, as far as they are kept."""
    wanted = set(places)
    found: dict[int, Record] = {}
    if not wanted:
        return found
    rows = _rows_decoder.decode(db.ask(_LOCATE, (integers(sorted(wanted)),)))
    for group in groups(rows):
        for record in read_records(db, group):
            place = place_of(record.partition, record.offset)
            if place in wanted:
                found[place] = record
    return found


_SHADOW: Final = """
SELECT place, append_ms, body FROM shadows WHERE place <= ? ORDER BY place DESC LIMIT 1
"""


def read_originals(db: Database, identities: Sequence[bytes]) -> dict[bytes, Original]:
    """Those of these identities that the log knows, and what it has of their events."""
    places = read_identities(db, identities)
    records = read_places(db, list(places.values())) if places else {}
    found: dict[bytes, Original] = {}
    for identity, place in places.items():
        record = records.get(place)
        if record is not None:
            found[identity] = Original.of(record)
            continue
        first, append_ms, body = db.ask(_SHADOW, (place,))  # retention has deleted it
        shadows = decode_shadows(body)
        found[identity] = Original(partition_at(place), offset_in(place), append_ms, shadows[int(place - first)])
    return found


def groups(rows: Iterable[Row]) -> Iterable[list[Row]]:
    """Rows in groups of at most `GROUP_BYTES`."""
    group: list[Row] = []
    size = 0
    for row in rows:
        if group and size + row.size > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(row)
        size += row.size
    if group:
        yield group


_IDENTITIES: Final = """
SELECT CAST(group_concat(identity, '') AS BLOB), json_group_array(place)
FROM identities WHERE identity IN (SELECT value FROM carray(?))
"""


def read_identities(db: Database, identities: Sequence[bytes]) -> dict[bytes, int]:
    """Those of these identities that the log holds, and their places."""
    if not identities:
        return {}
    joined, text = db.ask(_IDENTITIES, (texts(identities),))
    if joined is None:
        return {}
    places: list[int] = orjson.loads(text)
    return {joined[i * IDENTITY_BYTES : (i + 1) * IDENTITY_BYTES]: place for i, place in enumerate(places)}


_BY_PREFIX: Final = """
SELECT json_group_array(place) FROM (SELECT place FROM identities WHERE identity BETWEEN ? AND ? LIMIT ?)
"""


def read_by_prefix(db: Database, prefix: bytes, *, limit: int) -> list[int]:
    """Places of the identities that begin so."""
    last = prefix + b"\xff" * (IDENTITY_BYTES - len(prefix))
    places: list[int] = _json(db, _BY_PREFIX, (prefix, last, limit))
    return places


# binary search among the rows of each partition, between which there may be holes
_OFFSET_AT: Final = """
WITH RECURSIVE search(low, high) AS (
    SELECT value ->> 0, value ->> 1 FROM json_each(?1)
    UNION ALL
    SELECT iif(b.append_ms < ?2, max(b.place + b.records, (s.low + s.high) / 2 + 1), s.low),
           iif(b.append_ms < ?2, s.high, b.place)
    FROM search s JOIN batches b ON b.place = (
        SELECT place FROM batches WHERE place <= (s.low + s.high) / 2 ORDER BY place DESC LIMIT 1)
    WHERE s.low < s.high)
SELECT json_group_array(low) FROM search WHERE low >= high
"""


def read_offset_at(db: Database, ends: Mapping[int, PartitionEnd], append_ms: int) -> dict[int, int]:
    """Per partition the first offset below its end whose append time is not earlier; the end where there is none."""
    ranges = [[place_of(p, end.first), place_of(p, end.next)] for p, end in ends.items()]
    found: list[int] = _json(db, _OFFSET_AT, (orjson.dumps(ranges).decode(), append_ms))
    return {partition_at(place): offset_in(place) for place in found}


_APPEND_TIME: Final = """
SELECT append_ms FROM batches WHERE place BETWEEN ? AND ? ORDER BY place DESC LIMIT 1
"""


def read_append_time(db: Database, partition: int, offset: int) -> int | None:
    """Append time of the last record at or below the offset."""
    append_ms: int | None = db.ask(_APPEND_TIME, (place_of(partition, 0), place_of(partition, offset)))
    return append_ms


_STREAMS: Final = """
SELECT json_group_array(json_array(name, spread, created_ms, json((
    SELECT json_group_array(json_array(partition, events, last_offset, last_ms))
    FROM stream_ends WHERE stream = s.id))))
FROM (SELECT * FROM streams WHERE name {condition} ? ORDER BY name LIMIT ?) s
"""
_STREAMS_AFTER: Final = _STREAMS.format(condition=">")
_STREAM_NAMED: Final = _STREAMS.format(condition="=")


def read_streams(db: Database, *, after: str, limit: int) -> list[StreamInfo]:
    """Streams behind a name, in byte order."""
    return [_stream_info(*row) for row in _json(db, _STREAMS_AFTER, (after, limit))]


def read_stream(db: Database, name: str) -> StreamInfo | None:
    """One stream."""
    rows = _json(db, _STREAM_NAMED, (name, 1))
    return _stream_info(*rows[0]) if rows else None


def _stream_info(name: str, spread: int, created_ms: int, ends: list[list[int]]) -> StreamInfo:
    return StreamInfo(
        name=name,
        spread=spread,
        created_ms=created_ms,
        events=sum(end[1] for end in ends),
        last_ms=max((end[3] for end in ends), default=0),
        last={end[0]: end[2] for end in ends},
    )


_FORMER: Final = "SELECT json_group_array(json_array(ordinal, random, partition, stop)) FROM epochs"


def read_former(db: Database) -> list[FormerEpoch]:
    """Earlier incarnations of the log."""
    stops: dict[Epoch, dict[int, int]] = {}
    for ordinal, random, partition, stop in _json(db, _FORMER, ()):
        stops.setdefault(Epoch(ordinal, random), {})[partition] = stop
    return [FormerEpoch(epoch, found) for epoch, found in stops.items()]


_HOLES: Final = "SELECT json_group_array(json_array(place, stop)) FROM (SELECT * FROM holes ORDER BY place)"


def read_holes(db: Database) -> dict[int, list[tuple[int, int]]]:
    """Partition → ranges of offsets that were lost by damage, ascending."""
    found: dict[int, list[tuple[int, int]]] = {}
    for place, stop in _json(db, _HOLES, ()):
        found.setdefault(partition_at(place), []).append((offset_in(place), stop))
    return found


_STREAM_IDS: Final = """
SELECT json_group_array(json_array(name, id, spread)) FROM streams WHERE name IN (SELECT value FROM carray(?))
"""


def read_stream_ids(db: Database, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Names of existing streams → their number and spread."""
    if not names:
        return {}
    rows = _json(db, _STREAM_IDS, (texts(names),))
    return {name: (number, spread) for name, number, spread in rows}


def _json(db: Database, statement: str, bindings: tuple[Any, ...]) -> Any:
    return orjson.loads(db.ask(statement, bindings))
