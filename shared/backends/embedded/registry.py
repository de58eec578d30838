"""The registry of the embedded profile: ``registry.db``, shared by all processes that open its folder.

It is a hint and is treated so: nothing is fsynced, and a damaged file is moved aside and begun anew. Processes notice
by the file's inode that another one has done that (or that somebody deleted it) and follow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import msgspec
import orjson

from shared.backends.embedded import schema
from shared.backends.embedded.database import DamagedFileError, Database, close, make_folder, open_file
from shared.errors import StartError, Unavailable
from shared.ports import Beat, Member
from shared.settings import RegistrySettings

BEAT_LIFE: Final = 5.0
"""Seconds after which a heartbeat is gone."""
CACHE_KIB: Final = 256
MAX_WAITING: Final = 64
"""Calls that wait for the file; further ones are refused."""

T = TypeVar("T")
_Asked = tuple[Callable[[Database], Any], "asyncio.Future[Any]"]

_logger = logging.getLogger(__name__)
_items = msgspec.json.Encoder(order="sorted")
_member = msgspec.json.Decoder(Member)
_beat = msgspec.json.Decoder(Beat)


class EmbeddedRegistry:
    """`NodeRegistry` in a SQLite file. Calls run one after the other in a thread of their own."""

    def __init__(self, path: Path, settings: RegistrySettings, *, now: Callable[[], float] = time.monotonic) -> None:
        self._timeout = settings.timeout
        self._file = _RegistryFile(path, busy_ms=int(settings.timeout * 1000))
        self._now = now
        """A clock that all processes of the machine share, and that begins anew with it."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="registry")
        self._waiting = 0
        self._asked: list[_Asked] = []
        """Calls of this turn of the loop."""

    async def open(self) -> None:
        """Open the file, or make it. Raises `StartError`."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._file.open)

    async def close(self) -> None:
        """End the thread and close the file."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._file.close)
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)

    async def join(self, member: Member) -> None:
        """See `NodeRegistry.join`."""
        item = item_of(member)
        await self._ask(lambda db: db.ask("INSERT OR IGNORE INTO members(item) VALUES (?)", (item,)))

    async def leave(self, member: Member) -> None:
        """See `NodeRegistry.leave`."""
        item, key = item_of(member), member.key

        def leave(db: Database) -> None:
            with db.writing():
                db.ask("DELETE FROM members WHERE item = ?", (item,))
                db.ask("DELETE FROM beats WHERE key = ?", (key,))

        await self._ask(leave)

    async def beat(self, key: str, beat: Beat) -> Mapping[str, Beat]:
        """See `NodeRegistry.beat`."""
        text = _items.encode(beat).decode()

        def exchange(db: Database) -> str:
            with db.writing():
                now = self._now()  # under the lock, so that no beat in the file is newer
                db.ask("DELETE FROM beats WHERE at NOT BETWEEN ? AND ?", (now - BEAT_LIFE, now))
                db.ask("INSERT OR REPLACE INTO beats(key, beat, at) VALUES (?, ?, ?)", (key, text, now))
                return _read_beats(db)

        return self._fresh(await self._ask(exchange))  # one thread hop, one lock

    async def members(self) -> Sequence[Member]:
        """See `NodeRegistry.members`."""
        text = await self._ask(lambda db: db.ask("SELECT json_group_array(item) FROM members"))
        decoded = [_decode(_member, item) for item in orjson.loads(text)]
        return [member for member in decoded if member is not None]

    async def beats(self) -> Mapping[str, Beat]:
        """See `NodeRegistry.beats`."""
        return self._fresh(await self._ask(_read_beats))

    def _fresh(self, text: str) -> Mapping[str, Beat]:
        now = self._now()
        # one from the future was written before the machine was started the last time
        fresh = {key: beat for key, beat, at in orjson.loads(text) if now - BEAT_LIFE < at <= now}
        decoded = {key: _decode(_beat, beat) for key, beat in fresh.items()}
        return {key: beat for key, beat in decoded.items() if beat is not None}

    async def _ask(self, question: Callable[[Database], T]) -> T:
        if self._waiting >= MAX_WAITING:
            raise Unavailable("too many calls to the registry at once")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._timeout):
                loop = asyncio.get_running_loop()
                answer: asyncio.Future[T] = loop.create_future()
                if not self._asked:
                    loop.call_soon(self._send, loop)
                self._asked.append((question, answer))
                return await answer
        except TimeoutError as error:
            raise Unavailable("the registry did not answer in time") from error
        except (apsw.Error, StartError, OSError) as error:
            raise Unavailable(f"the registry cannot be used: {error}") from error
        finally:
            self._waiting -= 1

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        """To the thread with them, together: there and back costs more than most calls do."""
        asked, self._asked = self._asked, []
        try:
            found = loop.run_in_executor(self._executor, self._file.run_all, asked)
        except RuntimeError:  # it is closed
            _settle(asked, None)
        else:
            found.add_done_callback(lambda found: _settle(asked, None if found.cancelled() else found.result()))


def _settle(asked: Sequence[_Asked], found: Sequence[Any] | None) -> None:
    """Give the answers to who still waits for one; None: the registry was closed before there were any."""
    for number, (_, answer) in enumerate(asked):
        if answer.done():
            continue
        if found is None:
            answer.set_exception(Unavailable("the registry is closed"))
        elif isinstance(found[number], Exception):
            answer.set_exception(found[number])
        else:
            answer.set_result(found[number])


class _RegistryFile:
    """The file behind the registry, whichever it is at the moment. Used by one thread at a time."""

    def __init__(self, path: Path, *, busy_ms: int) -> None:
        self._path = path
        self._busy_ms = busy_ms
        self._db: Database | None = None
        self._inode = -1

    def open(self) -> Database:
        try:
            db = self._open()
        except DamagedFileError as error:
            _logger.warning("%s; the registry begins anew", error)
            self._move_aside()
            db = self._open()
        self._db, self._inode = db, self._path.stat().st_ino
        return db

    def run_all(self, asked: Sequence[_Asked]) -> list[Any]:
        """The answer to each that somebody still waits for, or what it raised."""
        return [None if answer.done() else self._try(question) for question, answer in asked]

    def _try(self, question: Callable[[Database], Any]) -> Any:
        try:
            return self.run(question)
        except Exception as error:  # noqa: BLE001 - whoever asked gets it
            return error

    def run(self, question: Callable[[Database], T]) -> T:
        db = self._db
        if db is None or self._inode != self._current_inode():
            self.close()
            db = self.open()
        try:
            return question(db)
        except (apsw.CorruptError, apsw.NotADBError) as error:
            _logger.warning("%s is damaged (%s); the registry begins anew", self._path, error)
            self.close()
            if self._inode == self._current_inode():
                self._move_aside()
            return question(self.open())

    def close(self) -> None:
        close(self._db)
        self._db = None

    def _open(self) -> Database:
        db = open_file(
            self._path,
            tables=schema.REGISTRY_TABLES,
            version=schema.REGISTRY_FORMAT,
            fill=lambda _: None,
            synchronous="off",
            cache_kib=CACHE_KIB,
        )
        db.set_busy_timeout(self._busy_ms)
        return db

    def _current_inode(self) -> int:
        try:
            return self._path.stat().st_ino
        except FileNotFoundError:
            return -1

    def _move_aside(self) -> None:
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        self._path.replace(self._path.with_suffix(".damaged"))


@asynccontextmanager
async def open_registry(folder: Path, settings: RegistrySettings) -> AsyncGenerator[EmbeddedRegistry]:
    """Open the registry in this folder, or make it. Raises `StartError`."""
    make_folder(folder)
    registry = EmbeddedRegistry(folder / schema.REGISTRY_FILE, settings)
    try:
        await registry.open()
        yield registry
    finally:
        await registry.close()


def _read_beats(db: Database) -> str:
    return str(db.ask("SELECT json_group_array(json_array(key, beat, at)) FROM beats"))


def item_of(member: Member) -> str:
    """A member as it stands in the set: JSON with sorted keys."""
    return _items.encode(member).decode()


def _decode(decoder: msgspec.json.Decoder[T], text: str) -> T | None:
    try:
        return decoder.decode(text)
    except msgspec.MsgspecError as error:
        _logger.warning("an entry of the registry was passed over: %s", error)
        return None
