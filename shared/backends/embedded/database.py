"""Connections to the embedded files: how a file is opened or made, and what SQLite's errors mean to us."""

# apsw's stub names a type that Python 3.11 lacks (collections.abc.Buffer); this module is where that ends
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import logging
import os
import time
from array import array
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import apsw

from shared.backends.embedded.schema import APPLICATION_ID
from shared.errors import DiskFull, StartError, Unavailable

MIN_SQLITE: Final = (3, 51, 3)
"""Older ones can corrupt a WAL database that several connections write (https://sqlite.org/wal.html#walresetbug)."""
OPEN_TIMEOUT: Final = 5.0
"""Seconds to wait for other processes that open the same new file."""
QUICK_CHECK_BYTES: Final = 16 * 1024 * 1024
"""Files up to this size are checked in full when they are opened; it takes a few milliseconds."""

_HEADER: Final = b"SQLite format 3\x00"
_logger = logging.getLogger(__name__)


class Database(apsw.Connection):
    """A connection whose questions are answered by one value, and whose statements are finished when they return."""

    def ask(self, statement: str, bindings: Sequence[Any] | Mapping[str, Any] = ()) -> Any:
        """Run one or several statements: the value of the only row, its columns as a tuple, or None without a row."""
        return self.execute(statement, bindings).get

    def setting(self, name: str, value: int | str | None = None) -> Any:
        """Read or set a pragma."""
        return self.pragma(name) if value is None else self.pragma(name, value)

    @contextmanager
    def writing(self) -> Generator[None]:
        """A transaction that may write; it is rolled back where anything fails."""
        self.ask("BEGIN IMMEDIATE")
        try:
            yield
            self.ask("COMMIT")
        finally:
            self.roll_back()

    @contextmanager
    def snapshot(self) -> Generator[None]:
        """Questions in here are answered by the file as it is at the first of them."""
        self.ask("BEGIN")
        try:
            yield
        finally:
            self.roll_back()

    def roll_back(self) -> None:
        """End a transaction that still stands."""
        if self.in_transaction:
            self.ask("ROLLBACK")


def integers(values: Iterable[int]) -> Any:
    """Many integers as one binding, for ``carray(?)``; there must be at least one."""
    return apsw.carray(array("q", values))


def texts(values: Iterable[str] | Iterable[bytes]) -> Any:
    """Many texts or blobs as one binding, for ``carray(?)``; there must be at least one."""
    bound: Any = tuple(values)  # what the driver's stubs take differs between versions of Python
    return apsw.carray(bound)


class DamagedFileError(StartError):
    """The file is not a database, or not an intact one."""


def check_library() -> None:
    """Refuse a SQLite that is too old to be trusted with a shared file. Raises `StartError`."""
    found = apsw.sqlite_lib_version()
    if tuple(int(part) for part in found.split(".")) < MIN_SQLITE:
        wanted = ".".join(map(str, MIN_SQLITE))
        raise StartError(
            f"SQLite {found} is too old: before {wanted} it can corrupt a file that several processes write. "
            "Install the 'apsw' wheel from the package index; it brings its own SQLite."
        )


def make_folder(folder: Path) -> None:
    """Make the data folder, for its owner only, unless it exists. Raises `StartError`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StartError(
            f"the data folder {folder} cannot be made: there is a file of that name; give --data"
        ) from error
    except OSError as error:
        raise StartError(f"the data folder {folder} cannot be made: {error.strerror}; give --data") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StartError(f"no permission to write into the data folder {folder}: change its owner or give --data")


def connect(path: Path, *, synchronous: str, cache_kib: int, busy_ms: int) -> Database:
    """One more connection to a file that `open_file` has accepted. Raises ``apsw.Error``."""
    db = Database(str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
    db.set_busy_timeout(busy_ms)
    db.setting("synchronous", synchronous)
    db.setting("cache_size", -cache_kib)
    return db


def open_file(
    path: Path,
    *,
    tables: str,
    version: int,
    fill: Callable[[Database], None],
    synchronous: str,
    cache_kib: int,
    upgrades: Mapping[int, str] | None = None,
) -> Database:
    """Open a file of ours, or make it. Of several processes that do so at once, one makes it.

    ``fill`` puts the first rows into a new file, in the transaction that makes its tables; ``upgrades`` has for each
    older version the statements that make the next one of it. Raises `DamagedFileError` or another `StartError`.
    """
    check_library()
    _check_file(path)
    db: Database | None = None
    try:
        db = connect(path, synchronous=synchronous, cache_kib=cache_kib, busy_ms=int(OPEN_TIMEOUT * 1000))
        _patiently(lambda: _become_ours(db, path, tables=tables, version=version, fill=fill))
        _patiently(lambda: _upgrade(db, path, version, upgrades or {}))
        _check_content(db, path)
    except (apsw.NotADBError, apsw.CorruptError) as error:
        close(db)
        raise DamagedFileError(damaged(path, str(error))) from error
    except apsw.Error as error:
        close(db)
        raise StartError(f"{path} cannot be opened: {error}. {_advice(error)}") from error
    except StartError:
        close(db)
        raise
    return db


def unavailable(error: apsw.Error) -> Unavailable:
    """What an error of a statement means to whoever asked: nothing was stored."""
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return Unavailable("log is busy: another process holds its lock", retry_after=1.0)
    if isinstance(error, apsw.FullError):
        return DiskFull("the disk of the log is full; nothing is stored before there is room", retry_after=5.0)
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        _logger.error("the log is damaged: %s", error)
        return Unavailable("the log is damaged", retry_after=5.0)
    _logger.error("the log cannot be used: %s: %s", type(error).__name__, error)
    return Unavailable("the log cannot be read or written", retry_after=5.0)


def close(db: Database | None) -> None:
    """Close a connection; one that a hung thread still uses is left to it."""
    try:
        if db is not None:
            db.close()
    except apsw.Error as error:
        _logger.warning("a connection could not be closed: %s", error)


def damaged(path: Path, finding: str) -> str:
    """The message for a file that is not what it should be."""
    return (
        f"{path} is not an intact database ({finding}): restore it from a backup together with its -wal file, "
        f"or save what can be read with 'cdrs log recover --data {path.parent}', "
        "or move it away to begin with an empty one"
    )


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            header = file.read(len(_HEADER))
    except FileNotFoundError:
        return
    except IsADirectoryError as error:
        raise StartError(f"{path} is a folder, not a file: move it away or give --data") from error
    except OSError as error:
        raise StartError(f"{path} cannot be read: {error.strerror}; change its owner or give --data") from error
    if not os.access(path, os.W_OK):
        raise StartError(f"no permission to write {path}: change its owner or give --data")
    if header and header != _HEADER:
        raise DamagedFileError(damaged(path, "it does not begin as a database does"))


def _become_ours(db: Database, path: Path, *, tables: str, version: int, fill: Callable[[Database], None]) -> None:
    if _check_owner(db, path, version):
        return
    db.setting("journal_mode", "wal")
    with db.writing():
        if not _check_owner(db, path, version):
            db.ask(tables)
            fill(db)
            db.setting("application_id", APPLICATION_ID)
            db.setting("user_version", version)


def _upgrade(db: Database, path: Path, version: int, upgrades: Mapping[int, str]) -> None:
    if db.setting("user_version") >= version:
        return
    with db.writing():
        for old in range(db.setting("user_version"), version):
            _logger.info("%s is brought from format %d to %d", path, old, old + 1)
            db.ask(upgrades[old])
        db.setting("user_version", version)


def _check_owner(db: Database, path: Path, version: int) -> bool:
    """True: ours. False: empty. Otherwise `StartError`."""
    # In this order: another process may make the file ours between the two questions, tables and id at once.
    is_empty = not db.ask("SELECT count(*) FROM sqlite_schema")
    owner = db.setting("application_id")
    if owner == 0 and is_empty:
        return False
    if owner != APPLICATION_ID:
        raise StartError(
            f"{path} belongs to another application (application id {owner:#010x}): "
            "move it away or give another folder with --data"
        )
    found = db.setting("user_version")
    if found > version:
        raise StartError(
            f"{path} was written by a newer cdrs (format {found}; this one knows up to {version}): "
            "upgrade cdrs or give another folder with --data"
        )
    if found < 1:
        raise DamagedFileError(damaged(path, f"its format version is {found}"))
    return True


def _check_content(db: Database, path: Path) -> None:
    if db.setting("journal_mode") != "wal":
        db.setting("journal_mode", "wal")
    if path.stat().st_size <= QUICK_CHECK_BYTES:
        finding = db.setting("quick_check", 1)
        if finding != "ok":
            raise DamagedFileError(damaged(path, finding))


def _patiently(step: Callable[[], None]) -> None:
    # the change to WAL mode asks for an exclusive lock without calling the busy handler
    deadline = time.monotonic() + OPEN_TIMEOUT
    while True:
        try:
            return step()
        except apsw.BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _advice(error: apsw.Error) -> str:
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return "Another process holds its lock: stop that process, or give another folder with --data."
    if isinstance(error, apsw.FullError):
        return "The disk is full: make room."
    return "Check owner and permissions of the folder and of every file in it, or give another folder with --data."
