"""Deleting the oldest events of ``log.db``, a piece at a time.

A piece is one transaction, so floor and events change together: whoever asks sees both before or both after. Any number
of processes may do it at once; they take turns by SQLite's lock, as writers do, and each begins with what is there.

What outlives the events for a while is a *shadow* of each batch: identities and fingerprints, to know copies by.
The file does not shrink: its free pages are used again.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final

import apsw
import msgspec
import orjson

from shared.backends.embedded.batches import decode_joined_shadows, encode_shadows
from shared.backends.embedded.database import Database, integers, texts, unavailable
from shared.backends.embedded.reading import Row, read_records, read_stream_ids
from shared.backends.embedded.schema import offset_in, partition_at, place_of
from shared.records import Expiry

PIECE_ROWS: Final = 64
PIECE_BYTES: Final = 4 * 1024 * 1024
"""What is deleted in one transaction, whichever comes first: appends wait behind it for some milliseconds."""
SHADOW_BYTES: Final = 90
"""What a deleted event still takes in the file, about: its entry in the index, and its shadow."""
WRITE_BACK_PAGES: Final = 16_000
"""Writers write the -wal file back earlier, if there are any."""


class _Victim(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A row of ``batches`` that may go."""

    place: int
    append_ms: int
    records: int
    size: int

    @property
    def partition(self) -> int:
        return partition_at(self.place)


_victims = msgspec.json.Decoder(list[_Victim])


class Retention:
    """Owns a connection; one piece at a time."""

    def __init__(self, db: Database, *, partitions: int) -> None:
        self._db = db
        self._partitions = partitions
        self._turn = threading.Lock()
        db.wal_autocheckpoint(WRITE_BACK_PAGES)

    async def delete(self, expiry: Expiry) -> bool:
        """Delete a piece; whether there is more to delete. Raises `Unavailable`."""
        return await asyncio.to_thread(self._delete, expiry)

    def _delete(self, expiry: Expiry) -> bool:
        with self._turn:
            try:
                if not self._choose(expiry) and not self._expired(expiry):
                    return False  # found without the writers' lock, as nearly always
                with self._db.writing():
                    self._delete_batches(self._choose(expiry), expiry.until_ms)
                    self._forget(self._expired(expiry))
            except apsw.Error as error:
                raise unavailable(error) from error
            return True

    # --- what goes

    def _choose(self, expiry: Expiry) -> list[_Victim]:
        oldest = [_victims.decode(self._db.ask(_OLDEST, self._range(p))) for p in range(self._partitions)]
        excess = self._excess(expiry)
        chosen: list[_Victim] = []
        size = 0
        for victim in heapq.merge(*oldest, key=lambda victim: (victim.append_ms, victim.place)):
            if victim.append_ms >= expiry.before_ms:
                if size >= excess:
                    break
                if victim is oldest[victim.partition][-1]:
                    continue  # for its size alone, the newest of a partition stays
            if chosen and (len(chosen) >= PIECE_ROWS or size + victim.size > PIECE_BYTES):
                break
            chosen.append(victim)
            size += victim.size
        return sorted(chosen, key=lambda victim: victim.place)

    def _range(self, partition: int) -> tuple[int, int, int]:
        return place_of(partition, 0), place_of(partition + 1, 0), PIECE_ROWS + 1

    def _excess(self, expiry: Expiry) -> int:
        if not expiry.max_bytes:
            return 0
        pages = self._db.setting("page_count") - self._db.setting("freelist_count")
        shadows = self._db.ask("SELECT coalesce(sum(value), 0) FROM meta WHERE name = ?", (_SHADOWED,))
        return int(pages * self._db.setting("page_size") - shadows * SHADOW_BYTES - expiry.max_bytes)

    def _expired(self, expiry: Expiry) -> list[int]:
        found: list[int] = orjson.loads(self._db.ask(_EXPIRED, (expiry.now_ms, PIECE_ROWS)))
        return found

    # --- how it goes

    def _delete_batches(self, victims: Sequence[_Victim], until_ms: int) -> None:
        if not victims:
            return
        db = self._db
        rows = [Row(victim.place, victim.records, victim.size, victim.records) for victim in victims]
        records = iter(read_records(db, rows))
        shadows: list[tuple[int, int, int, int, int, int]] = []
        bodies: list[bytes] = []
        counts: Counter[tuple[str, int]] = Counter()
        entries: list[tuple[str, int]] = []
        at = 1
        for victim in victims:
            found = list(islice(records, victim.records))
            body = encode_shadows(found)
            shadows.append((victim.place, victim.append_ms, victim.records, until_ms, at, len(body)))
            bodies.append(body)
            at += len(body)
            entries += [(stream, victim.place) for stream in {record.stream for record in found}]
            counts.update((record.stream, victim.partition) for record in found)
        self._raise_floors(victims)
        db.ask(_INSERT_SHADOWS, (_json(shadows), b"".join(bodies)))
        self._count_shadows(sum(victim.records for victim in victims))
        streams = read_stream_ids(db, list({name for name, _ in counts}))
        db.ask(_UNCOUNT, (_json([(streams[name][0], place, count) for (name, place), count in counts.items()]),))
        db.ask(_UNLIST, (_json([(streams[name][0], place) for name, place in entries]),))
        db.ask("DELETE FROM batches WHERE place IN (SELECT value FROM carray(?))", (integers(_places(victims)),))

    def _raise_floors(self, victims: Sequence[_Victim]) -> None:
        last = {victim.partition: victim for victim in victims}
        floors = [(p, offset_in(each.place) + each.records, each.append_ms) for p, each in last.items()]
        self._db.ask(_RAISE, (_json(floors),))

    def _count_shadows(self, more: int) -> None:
        self._db.ask(_COUNT_SHADOWS, (_SHADOWED, more))

    def _forget(self, places: Sequence[int]) -> None:
        """What stood there is new again if it comes once more."""
        if not places:
            return
        db, bound = self._db, integers(places)
        bodies, lengths = db.ask(_SHADOW_BODIES, (bound,))
        identities = [shadow.identity for shadow in decode_joined_shadows(bodies, lengths)]
        db.ask("DELETE FROM identities WHERE identity IN (SELECT value FROM carray(?))", (texts(identities),))
        db.ask("DELETE FROM shadows WHERE place IN (SELECT value FROM carray(?))", (bound,))
        self._count_shadows(-len(identities))


def _places(victims: Sequence[_Victim]) -> list[int]:
    return [victim.place for victim in victims]


def _json(rows: Sequence[tuple[Any, ...]]) -> str:
    return orjson.dumps(rows).decode()


# Each is one step whatever it carries (see `shared.backends.embedded.reading` for why).
_SHADOWED: Final = "shadowed"
"""In ``meta``: how many events have a shadow."""
_COUNT_SHADOWS: Final = """
INSERT INTO meta(name, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = value + ?2
"""
_OLDEST: Final = """
SELECT json_group_array(json_array(place, append_ms, records, size))
FROM (SELECT place, append_ms, records, size FROM batches WHERE place >= ? AND place < ? ORDER BY place LIMIT ?)
"""
_EXPIRED: Final = """
SELECT json_group_array(place) FROM (SELECT place FROM shadows WHERE until_ms < ? ORDER BY until_ms LIMIT ?)
"""
_RAISE: Final = """
INSERT INTO floors(partition, floor, last_ms)
SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?) WHERE true
ON CONFLICT DO UPDATE SET floor = max(floor, excluded.floor), last_ms = max(last_ms, excluded.last_ms)
"""
_INSERT_SHADOWS: Final = """
INSERT INTO shadows(place, append_ms, records, until_ms, body)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, substr(?2, value ->> 4, value ->> 5) FROM json_each(?1)
"""
_SHADOW_BODIES: Final = """
SELECT CAST(group_concat(body, '') AS BLOB), group_concat(length(body))
FROM (SELECT body FROM shadows WHERE place IN (SELECT value FROM carray(?)) ORDER BY place)
"""
_UNCOUNT: Final = """
UPDATE stream_ends SET events = events - gone.n
FROM (SELECT value ->> 0 AS stream, value ->> 1 AS partition, value ->> 2 AS n FROM json_each(?)) AS gone
WHERE stream_ends.stream = gone.stream AND stream_ends.partition = gone.partition
"""
_UNLIST: Final = """
DELETE FROM stream_batches WHERE (stream, place) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))
"""
