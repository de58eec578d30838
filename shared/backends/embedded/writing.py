"""The statements that write rows into ``log.db``.

Each is one step whatever it carries (see `shared.backends.embedded.reading` for why). Few rows go as values, which cost
a quarter of the same rows as JSON; many as JSON, which keeps the number of different statements small.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final

import orjson

from shared.backends.embedded.database import Database, integers
from shared.backends.embedded.plan import Rows

FEW: Final = 20
"""Rows of a table up to which they go as values. The connection keeps 100 statements ready: one for each number of rows
and table."""


def write(db: Database, rows: Rows) -> None:
    """Write them, within a transaction that has begun. Raises ``apsw.ConstraintError`` where an identity is known."""
    if rows.streams:
        db.ask(_INSERT_STREAMS, (_json(rows.streams),))
    if not rows.places:
        return
    if len(rows.places) <= FEW:
        db.ask(_values(_IDENTITIES, 2, len(rows.places)), _flat(zip(rows.identities, rows.places, strict=True)))
    else:
        db.ask(_INSERT_IDENTITIES, (b"".join(rows.identities), integers(rows.places)))
    if len(rows.batches) <= FEW:
        db.ask(_values(_BATCHES, 5, len(rows.batches)), _flat(rows.batches))
    else:
        db.ask(_INSERT_BATCHES, _batches(rows.batches))
    if len(rows.stream_batches) <= FEW:
        db.ask(_values(_STREAM_BATCHES, 3, len(rows.stream_batches)), _flat(rows.stream_batches))
    else:
        db.ask(_INSERT_STREAM_BATCHES, (_json(rows.stream_batches),))
    if len(rows.stream_ends) <= FEW:
        db.ask(_values(_STREAM_ENDS, 5, len(rows.stream_ends), _ADD), _flat(rows.stream_ends))
    else:
        db.ask(_UPSERT_STREAM_ENDS, (_json(rows.stream_ends),))


def _flat(rows: Any) -> tuple[Any, ...]:
    return tuple(chain.from_iterable(rows))


def _json(rows: Sequence[tuple[Any, ...]]) -> str:
    return orjson.dumps(rows).decode()


def _batches(rows: Sequence[tuple[int, int, int, int, bytes]]) -> tuple[str, bytes]:
    """The bodies as one blob, and where in it each is."""
    at, found = 1, list[tuple[int, int, int, int, int]]()
    for place, append_ms, records, size, _ in rows:
        found.append((place, append_ms, records, size, at))
        at += size
    return _json(found), b"".join([body for *_, body in rows])


@lru_cache(maxsize=4 * FEW)
def _values(insert: str, columns: int, rows: int, behind: str = "") -> str:
    row = f"({','.join('?' * columns)})"
    return f"{insert} VALUES {','.join([row] * rows)}{behind}"


_IDENTITIES: Final = "INSERT INTO identities(identity, place)"
_BATCHES: Final = "INSERT INTO batches(place, append_ms, records, size, body)"
_STREAM_BATCHES: Final = "INSERT INTO stream_batches(stream, place, records)"
_STREAM_ENDS: Final = "INSERT INTO stream_ends(stream, partition, events, last_offset, last_ms)"
_ADD: Final = """
ON CONFLICT DO UPDATE
SET events = events + excluded.events, last_offset = excluded.last_offset, last_ms = excluded.last_ms
"""
_INSERT_STREAMS: Final = """
INSERT INTO streams(id, name, spread, created_ms)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?)
"""
_INSERT_IDENTITIES: Final = """
INSERT INTO identities(identity, place) SELECT substr(?1, 20 * rowid - 19, 20), value FROM carray(?2)
"""
_INSERT_BATCHES: Final = """
INSERT INTO batches(place, append_ms, records, size, body)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, substr(?2, value ->> 4, value ->> 3) FROM json_each(?1)
"""
_INSERT_STREAM_BATCHES: Final = """
INSERT INTO stream_batches(stream, place, records) SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?)
"""
_UPSERT_STREAM_ENDS: Final = """
INSERT INTO stream_ends(stream, partition, events, last_offset, last_ms)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(?) WHERE true
ON CONFLICT DO UPDATE
SET events = events + excluded.events, last_offset = excluded.last_offset, last_ms = excluded.last_ms
"""
