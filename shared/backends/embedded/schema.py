"""What stands in ``log.db`` and ``registry.db``, and the marks by which we know our own files.

The log keeps records in *batches*, as Kafka does: a row holds up to `MAX_BATCH_RECORDS` consecutive records of one
partition, encoded in one piece (`shared.backends.embedded.batches`). A thousand records are then a few dozen rows to
write and to read, which matters twice: the B-trees stay small, and Python gives its interpreter lock away and fights
for it again at every row that SQLite steps over.

A *place* is one integer for partition and offset: ``partition << OFFSET_BITS | offset``. Places of a partition are
contiguous, and so are the rows of its batches.
"""

from __future__ import annotations

from typing import Final

OFFSET_BITS: Final = 44
OFFSET_MASK: Final = (1 << OFFSET_BITS) - 1

APPLICATION_ID: Final = 0x63_64_72_73
"""``cdrs`` in ASCII, in the header of both files (https://sqlite.org/fileformat2.html, offset 68)."""

LOG_FILE: Final = "log.db"
LOG_FORMAT: Final = 3
"""Version of the log's tables, in the header as ``user_version``. A newer one is refused, an older one upgraded."""
_SINCE_2: Final = """
-- What retention has deleted of a partition: everything below ``floor``, which is also the end where nothing is kept.
CREATE TABLE floors(partition INTEGER PRIMARY KEY, floor INTEGER NOT NULL, last_ms INTEGER NOT NULL) STRICT;

-- What outlives the events of a deleted batch for a while: their identities, and what a copy is compared with.
CREATE TABLE shadows(
    place INTEGER PRIMARY KEY,
    append_ms INTEGER NOT NULL,
    records INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX shadows_until ON shadows(until_ms);

-- Former incarnations of this log: what they had below ``stop`` stands here, at the same offset.
CREATE TABLE epochs(
    ordinal INTEGER NOT NULL,
    random INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    stop INTEGER NOT NULL,
    PRIMARY KEY(ordinal, random, partition)
) STRICT, WITHOUT ROWID;

-- Offsets that were lost by damage, from the place on up to the offset ``stop``.
CREATE TABLE holes(place INTEGER PRIMARY KEY, stop INTEGER NOT NULL) STRICT;
"""
_SINCE_3: Final = (
    "-- No table differs: identities do (`shared.records.identity_of`), and whoever knows no 3 would not find them."
)
LOG_UPGRADES: Final = {1: _SINCE_2, 2: _SINCE_3}
"""Format → the statements that make the next one of it."""
LOG_TABLES: Final = (
    """
CREATE TABLE meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;

-- Consecutive records of one partition. The row's key is the place of the first one.
CREATE TABLE batches(
    place INTEGER PRIMARY KEY,
    append_ms INTEGER NOT NULL,
    records INTEGER NOT NULL,
    size INTEGER NOT NULL,  -- of the body, which is not touched by whoever only wants to know
    body BLOB NOT NULL
) STRICT;

-- Which identities the log holds, and where.
CREATE TABLE identities(identity BLOB PRIMARY KEY, place INTEGER NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE streams(
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    spread INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

-- What a stream has in a partition so far.
CREATE TABLE stream_ends(
    stream INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    events INTEGER NOT NULL,
    last_offset INTEGER NOT NULL,
    last_ms INTEGER NOT NULL,
    PRIMARY KEY(stream, partition)
) STRICT, WITHOUT ROWID;

-- Which batches hold records of a stream, and how many.
CREATE TABLE stream_batches(
    stream INTEGER NOT NULL,
    place INTEGER NOT NULL,
    records INTEGER NOT NULL,
    PRIMARY KEY(stream, place)
) STRICT, WITHOUT ROWID;
"""
    + _SINCE_2
)

REGISTRY_FILE: Final = "registry.db"
REGISTRY_FORMAT: Final = 1
REGISTRY_TABLES: Final = """
-- The set. An item is the member's JSON text with sorted keys.
CREATE TABLE members(item TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;

-- The heartbeats. ``at`` is the machine's monotonic clock, which all processes share.
CREATE TABLE beats(key TEXT PRIMARY KEY, beat TEXT NOT NULL, at REAL NOT NULL) STRICT, WITHOUT ROWID;
"""


def place_of(partition: int, offset: int) -> int:
    """Partition and offset as one integer."""
    return partition << OFFSET_BITS | offset


def partition_at(place: int) -> int:
    """The partition of a place."""
    return place >> OFFSET_BITS


def offset_in(place: int) -> int:
    """The offset of a place."""
    return place & OFFSET_MASK
