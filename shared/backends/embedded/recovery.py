"""`cdrs log recover`: from a ``log.db`` that must not be served any more to one that may, in a new epoch.

A sound file stays as it is and only becomes another epoch. Of a damaged one a new file is made of what can be read,
each event at the offset that it had; the damaged file is kept under another name. In both cases the log remembers its
former epochs and up to where they stand in it, so that their cursors go on as far as nothing was lost, and which
offsets were lost, so that readers are told.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import apsw

from shared.backends.embedded import schema
from shared.backends.embedded.batches import encode_batch
from shared.backends.embedded.database import Database, check_library, close, open_file
from shared.backends.embedded.marks import Mark, check_mark, read_mark, write_mark
from shared.backends.embedded.plan import Rows
from shared.backends.embedded.salvage import Batch, Salvage
from shared.backends.embedded.schema import place_of
from shared.backends.embedded.writing import write
from shared.errors import StartError
from shared.partitioning import DEFAULT_PARTITIONS, partitions_of_stream
from shared.position import Epoch
from shared.records import FormerEpoch
from shared.recovered import Findings, Recovery

CACHE_KIB: Final = 64 * 1024
GROUP: Final = 256
"""Rows written in one transaction."""
_SHARED_BYTES: Final = 0x4000_0002, 510
"""Where SQLite keeps a shared lock in the file for as long as a connection is open (https://sqlite.org/src, os.h)."""


def check_log(folder: Path) -> Recovery:
    """Read the whole log. Changes nothing; processes that serve it may go on. Raises `StartError`."""
    path = _existing(folder)
    mark = read_mark(folder)  # first, as the log grows meanwhile
    with _reading(path) as db, db.snapshot():
        salvage = _salvage(db, mark)
        found = salvage.inspect()
    if mark is not None and found.epoch not in {None, mark.epoch}:
        assert found.epoch is not None
        former = [FormerEpoch(Epoch(ordinal, random), {}) for ordinal, random, _, _ in salvage.former]
        check_mark(folder, mark, found.epoch, former, found.ends)
    return Recovery(str(path), found, _beyond(mark, found), None)


def recover_log(folder: Path, partitions: int = DEFAULT_PARTITIONS) -> Recovery:
    """Put the log into a new epoch; no process may have it open. ``partitions``: how many there are, where neither the
    file nor its mark says it. Raises `StartError`; then nothing has changed."""
    path = _existing(folder)
    _refuse_if_open(path)
    mark = read_mark(folder)
    with _reading(path) as db:
        salvage = _salvage(db, mark, partitions)
        found = salvage.inspect()
        if not salvage.is_at_home:
            raise StartError(
                f"{path}: its events do not stand where {found.partitions} partitions put them, and neither the file "
                "nor its mark says how many there were: set log.partitions to what it was"
            )
        beyond = _beyond(mark, found)
        former = found.epoch or (mark.epoch if mark is not None else None)
        ordinals = [each.ordinal for each in (found.epoch, mark.epoch if mark is not None else None) if each]
        epoch = Epoch.create(max(ordinals, default=0) + 1)
        made = None if found.is_sound else _make_anew(path, salvage, found, former, epoch)
    kept_as = None
    if made is None:
        _renew(path, found, epoch)
    else:
        kept_as = _put_in_place(path, made, former or epoch)
    write_mark(folder, Mark(epoch, [found.ends[partition] for partition in range(found.partitions)]))
    return Recovery(str(path), found, beyond, epoch, kept_as)


def _existing(folder: Path) -> Path:
    check_library()
    path = folder / schema.LOG_FILE
    if not path.is_file():
        raise StartError(f"there is no log in {folder}: give the data folder with --data")
    return path


def _salvage(db: Database, mark: Mark | None, partitions: int = DEFAULT_PARTITIONS) -> Salvage:
    return Salvage(db, partitions=partitions if mark is None else len(mark.ends), is_guess=mark is None)


def _beyond(mark: Mark | None, found: Findings) -> list[tuple[int, int, int]]:
    if mark is None or found.epoch not in {None, mark.epoch}:
        return []
    ends = [(partition, found.ends.get(partition, 0), end) for partition, end in enumerate(mark.ends)]
    return [each for each in ends if each[1] < each[2]]


@contextmanager
def _reading(path: Path) -> Generator[Database]:
    """A connection that changes nothing and reads what it can."""
    db = None
    try:
        db = Database(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        db.set_busy_timeout(1000)
        with suppress(apsw.Error):
            db.setting("writable_schema", 1)  # else a file that was cut short is not read at all
            db.setting("cache_size", -CACHE_KIB)
        yield db
    except apsw.Error as error:
        raise StartError(f"{path} cannot be read: {error}") from error
    finally:
        close(db)


def _refuse_if_open(path: Path) -> None:
    start, length = _SHARED_BYTES
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except OSError as error:
            raise StartError(f"{path} is in use: stop every process of cdrs that serves this folder first") from error


# --- a sound file


def _renew(path: Path, found: Findings, epoch: Epoch) -> None:
    assert found.epoch is not None
    db = open_file(
        path,
        tables=schema.LOG_TABLES,
        version=schema.LOG_FORMAT,
        fill=lambda _: None,
        synchronous="full",
        cache_kib=CACHE_KIB,
        upgrades=schema.LOG_UPGRADES,
    )
    try:
        with db.writing():
            for partition, end in found.ends.items():
                db.ask(_FORMER, (found.epoch.ordinal, found.epoch.random, partition, end))
                db.ask(_NO_HOLES, (place_of(partition, end), place_of(partition + 1, 0)))
            _set_epoch(db, epoch)
    finally:
        close(db)


def _set_epoch(db: Database, epoch: Epoch) -> None:
    for name, value in (("epoch_ordinal", epoch.ordinal), ("epoch_random", epoch.random)):
        db.ask("INSERT OR REPLACE INTO meta(name, value) VALUES (?, ?)", (name, value))


# --- a damaged one


def _make_anew(path: Path, salvage: Salvage, found: Findings, former: Epoch | None, epoch: Epoch) -> Path:
    made = path.with_name(f"{path.name}.recovering")
    for leftover in path.parent.glob(f"{made.name}*"):
        leftover.unlink()

    def fill(db: Database) -> None:
        for name, value in (("partitions", found.partitions), ("created_ms", found.created_ms)):
            db.ask("INSERT INTO meta(name, value) VALUES (?, ?)", (name, value))
        _set_epoch(db, epoch)

    db = open_file(
        made,
        tables=schema.LOG_TABLES,
        version=schema.LOG_FORMAT,
        fill=fill,
        synchronous="normal",
        cache_kib=CACHE_KIB,
    )
    try:
        _Copy(db, salvage, found).run(former)
        db.setting("journal_mode", "delete")  # one file, synced
        db.setting("journal_mode", "wal")
    finally:
        close(db)
    with made.open("rb") as file:
        os.fsync(file.fileno())
    return made


class _Copy:
    """Writes what was salvaged into a new file."""

    def __init__(self, db: Database, salvage: Salvage, found: Findings) -> None:
        self._db = db
        self._salvage = salvage
        self._found = found
        self._numbers: dict[str, int] = {}
        self._seen: dict[str, tuple[set[int], int]] = {}
        """Stream that the damaged file does not describe → its partitions, and when its first event was appended."""

    def run(self, former: Epoch | None) -> None:
        """Everything."""
        with self._db.writing():
            for name, (spread, created_ms) in self._salvage.streams.items():
                self._add_stream(name, spread, created_ms)
            for partition, floor, last_ms in self._salvage.floors:
                self._db.ask("INSERT INTO floors VALUES (?, ?, ?)", (partition, floor, last_ms))
        for partition in range(self._found.partitions):
            group: list[Batch] = []
            for batch in self._salvage.batches(partition):
                group.append(batch)
                if len(group) >= GROUP:
                    self._write(partition, group)
                    group = []
            self._write(partition, group)
            self._copy_shadows(partition)
        with self._db.writing():
            self._describe_streams()
            self._remember(former)

    def _add_stream(self, name: str, spread: int, created_ms: int) -> int:
        number = self._numbers[name] = len(self._numbers) + 1
        self._db.ask("INSERT INTO streams VALUES (?, ?, ?, ?)", (number, name, spread, created_ms))
        return number

    def _write(self, partition: int, group: Sequence[Batch]) -> None:
        with self._db.writing():
            for batch in group:
                write(self._db, self._rows(partition, batch))

    def _rows(self, partition: int, batch: Batch) -> Rows:
        rows, records = Rows(), batch.records
        body = encode_batch(records)
        rows.batches = [(batch.place, batch.append_ms, len(records), len(body), body)]
        rows.identities = [record.identity for record in records]
        rows.places = list(range(batch.place, batch.place + len(records)))
        counts: dict[str, tuple[int, int]] = {}
        for record in records:
            counts[record.stream] = counts.get(record.stream, (0, 0))[0] + 1, record.offset
        for name, (count, last) in counts.items():
            number = self._number(name, partition, batch.append_ms)
            rows.stream_batches.append((number, batch.place, count))
            rows.stream_ends.append((number, partition, count, last, batch.append_ms))
        return rows

    def _number(self, name: str, partition: int, append_ms: int) -> int:
        if name not in self._numbers:
            self._seen[name] = set(), append_ms
            self._add_stream(name, 1, append_ms)
        if name in self._seen:
            self._seen[name][0].add(partition)
        return self._numbers[name]

    def _copy_shadows(self, partition: int) -> None:
        with self._db.writing():
            for row in self._salvage.shadows(partition):
                count = len(row.shadows)
                self._db.ask(_SHADOW, (row.place, row.append_ms, count, row.until_ms, row.body))
                for place, shadow in enumerate(row.shadows, row.place):
                    self._db.ask("INSERT OR IGNORE INTO identities VALUES (?, ?)", (shadow.identity, place))
                self._db.ask(_SHADOWED, (count,))

    def _describe_streams(self) -> None:
        """The spread of streams that are only known by their events: the smallest that these can have come by."""
        partitions = self._found.partitions
        for name, (seen, _) in self._seen.items():
            spread = 1
            while not seen <= set(partitions_of_stream(name, partitions=partitions, spread=spread)):
                spread += 1
            self._db.ask("UPDATE streams SET spread = ? WHERE name = ?", (spread, name))

    def _remember(self, former: Epoch | None) -> None:
        found, db = self._found, self._db
        for ordinal, random, partition, stop in self._salvage.former:
            db.ask(_FORMER, (ordinal, random, partition, min(stop, found.ends[partition])))
        for partition, end in found.ends.items() if former is not None else ():
            assert former is not None
            db.ask(_FORMER, (former.ordinal, former.random, partition, end))
        for partition, start, stop in _joined([*found.holes, *found.lost]):
            if start < found.ends[partition]:  # what was lost beyond will be given to other events
                db.ask("INSERT INTO holes VALUES (?, ?)", (place_of(partition, start), stop))


def _joined(holes: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The same as one each where they touch."""
    joined: list[tuple[int, int, int]] = []
    for hole in sorted(holes):
        if joined and joined[-1][0] == hole[0] and hole[1] <= joined[-1][2]:
            partition, start, stop = joined[-1]
            joined[-1] = partition, start, max(stop, hole[2])
        else:
            joined.append(hole)
    return joined


def _put_in_place(path: Path, made: Path, former: Epoch) -> Path:
    kept = path.with_name(f"{path.name}.damaged-{former}")
    number = 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.damaged-{former}-{number}")
    wal, shm = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    kept.hardlink_to(path)  # there is a log.db at each moment
    if wal.exists():
        wal.rename(kept.with_name(f"{kept.name}-wal"))  # it must not be taken for that of the new file
    shm.unlink(missing_ok=True)
    made.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return kept


_FORMER: Final = "INSERT OR REPLACE INTO epochs(ordinal, random, partition, stop) VALUES (?, ?, ?, ?)"
_NO_HOLES: Final = "DELETE FROM holes WHERE place >= ? AND place < ?"
_SHADOW: Final = "INSERT INTO shadows(place, append_ms, records, until_ms, body) VALUES (?, ?, ?, ?, ?)"
_SHADOWED: Final = """
INSERT INTO meta(name, value) VALUES ('shadowed', ?1) ON CONFLICT DO UPDATE SET value = value + ?1
"""
