"""The log of the embedded profile: ``log.db``, shared by all processes that open its folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import orjson

from shared.backends.embedded import schema
from shared.backends.embedded.calls import Answer, AppendCall, Call
from shared.backends.embedded.database import (
    DamagedFileError,
    Database,
    close,
    connect,
    damaged,
    make_folder,
    open_file,
)
from shared.backends.embedded.pool import ReadPool
from shared.backends.embedded.reading import read_ends, read_former, read_holes
from shared.backends.embedded.retention import Retention
from shared.backends.embedded.store import EmbeddedStore
from shared.backends.embedded.tail import EmbeddedTail, Watch
from shared.backends.embedded.writer import Committed, Writer
from shared.clock import Clock
from shared.deadlines import Deadlines
from shared.direct import Appended
from shared.errors import OutcomeUnknown, Overloaded, Unavailable
from shared.position import Epoch
from shared.records import Duplicate, FormerEpoch, NewEvent
from shared.settings import LogSettings

READERS: Final = 2
WRITER_CACHE_KIB: Final = 16 * 1024
READER_CACHE_KIB: Final = 2 * 1024
READER_BUSY_MS: Final = 1000
RETENTION_BUSY_MS: Final = 1000
ANSWER_MARGIN: Final = 0.5
"""Seconds beyond the append timeout after which an append is given up although nobody answered."""

T = TypeVar("T")


class EmbeddedLog:
    """`EventLog` in a SQLite file. An append is durable when its transaction's fsync has returned.

    An identity is refused by the append's own transaction, so no record is ever void or a duplicate. Any number of
    processes may append at the same time; they take turns by SQLite's lock.
    """

    @property
    def decides_identity(self) -> bool:
        """See `EventLog`."""
        return True

    def __init__(
        self,
        settings: LogSettings,
        *,
        epoch: Epoch,
        former: Sequence[FormerEpoch],
        partitions: int,
        pool: ReadPool,
        watch: Watch,
    ) -> None:
        self._settings = settings
        self._former = former
        self._epoch = epoch
        self._partitions = partitions
        self._pool = pool
        self._watch = watch
        self._writer: Writer | None = None
        self._queued = 0
        self._deadlines: Deadlines[Call] = Deadlines(_give_up)

    @property
    def epoch(self) -> Epoch:
        """See `EventLog.epoch`."""
        return self._epoch

    @property
    def partitions(self) -> int:
        """See `EventLog.partitions`."""
        return self._partitions

    @property
    def former(self) -> Sequence[FormerEpoch]:
        """See `SuccessorLog.former`."""
        return self._former

    @property
    def origins(self) -> Mapping[int, int]:
        """See `SuccessorLog.origins`: records of former incarnations are as good as new ones."""
        return {}

    @property
    def known_ends(self) -> Mapping[int, int]:
        """`ends`, as far as is known here without asking."""
        return self._watch.ends

    async def append(self, partition: int, events: Sequence[NewEvent], *, base: int) -> Sequence[Duplicate | None]:
        """See `EventLog.append`."""
        if not 0 <= partition < self._partitions:
            raise ValueError(f"partition {partition} of {self._partitions}")
        answers: Sequence[Duplicate | None] = await self.write(
            AppendCall(partition, events, base=base, deadline=self.deadline())
        )
        return answers

    def tail(self, positions: Mapping[int, int]) -> EmbeddedTail:
        """See `EventLog.tail`."""
        return EmbeddedTail(self._watch, self._pool, positions)

    async def ends(self) -> Mapping[int, int]:
        """See `EventLog.ends`."""
        found = await self._pool.ask(lambda db: read_ends(db, self._partitions))
        ends = {partition: end.next for partition, end in found.items()}
        self._watch.advance(ends)
        return ends

    async def starts(self) -> Mapping[int, int]:
        """See `EventLog.starts`."""
        found = await self._pool.ask(lambda db: read_ends(db, self._partitions))
        return {partition: end.first for partition, end in found.items()}

    def deadline(self) -> float:
        """Until when a call that begins now may wait for the lock."""
        return time.monotonic() + self._settings.append_timeout

    async def write(self, call: Call) -> Any:
        """Have the writer serve a call. Raises what the call was refused with."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def told(outcome: Answer) -> None:
            if answer.done():
                return
            if isinstance(outcome, Exception):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        call.when_told(told)
        self._submit([call])
        try:
            return await answer
        except asyncio.CancelledError:
            call.withdraw()
            raise

    def append_all(self, appends: Sequence[tuple[int, Sequence[NewEvent], Appended]]) -> None:
        """See `DirectLog.append_all`."""
        deadline = self.deadline()
        self._submit(
            [
                AppendCall(partition, events, base=0, deadline=deadline, told=appended)
                for partition, events, appended in appends
            ]
        )

    def _submit(self, calls: Sequence[Call]) -> None:
        """Pass calls to the writer together; what it does not answer in time is given up."""
        writer = self._writer
        taken: list[Call] = []
        give_up_at = time.monotonic() + self._settings.append_timeout + ANSWER_MARGIN
        for call in calls:
            if writer is None:
                call.tell(Unavailable("the log is closed"))
            elif self._queued and self._queued + call.size > self._settings.queue_bytes:
                call.tell(Overloaded("too much waits for the log", retry_after=1.0))
            else:
                self._queued += call.size
                self._deadlines.add(call, give_up_at)
                taken.append(call)
        if writer is not None and taken:
            writer.submit(taken)

    @asynccontextmanager
    async def writing(self, db: Database, clock: Clock) -> AsyncGenerator[None]:
        """Take writes, on this connection."""
        writer = Writer(db, partitions=self._partitions, clock=clock, on_commit=self._settle)
        self._writer = writer
        try:
            yield
        finally:
            self._writer = None
            await writer.close(self._settings.append_timeout + ANSWER_MARGIN)
            self._deadlines.close()

    def _settle(self, committed: Committed) -> None:
        if committed.ends:
            self._watch.committed(committed.batches, committed.ends)
        for call, answer in committed.outcomes:
            self._queued -= call.size
            self._deadlines.discard(call)
            call.tell(answer)


def _give_up(call: Call) -> None:
    if call.withdraw():
        call.tell(Unavailable("log is busy", retry_after=1.0))
    else:
        call.tell(OutcomeUnknown("the log did not answer in time", retry_after=1.0))


@asynccontextmanager
async def open_log(
    folder: Path, settings: LogSettings, clock: Clock
) -> AsyncGenerator[tuple[EmbeddedLog, EmbeddedStore]]:
    """Open the log in this folder, or make it; log and store are one file. Raises `StartError`.

    A file that exists keeps its number of partitions, whatever the settings say.
    """
    async with AsyncExitStack() as stack:
        db, meta = await asyncio.to_thread(_open, folder, settings, clock)
        stack.callback(close, db)
        partitions = meta["partitions"]
        path = folder / schema.LOG_FILE
        readers = [_connect_reader(path, READER_BUSY_MS) for _ in range(READERS)]
        pool = ReadPool(readers, timeout=settings.read_timeout)
        stack.push_async_callback(pool.close)
        watch = Watch(_connect_reader(path, 0), pool, partitions=partitions, interval=settings.poll_interval)
        stack.callback(watch.close)
        epoch = Epoch(meta["epoch_ordinal"], meta["epoch_random"])
        former, holes = read_former(db), read_holes(db)
        log = EmbeddedLog(settings, epoch=epoch, former=former, partitions=partitions, pool=pool, watch=watch)
        await stack.enter_async_context(log.writing(db, clock))
        trimmer = connect(path, synchronous="full", cache_kib=READER_CACHE_KIB, busy_ms=RETENTION_BUSY_MS)
        stack.callback(close, trimmer)
        yield log, EmbeddedStore(log, pool, Retention(trimmer, partitions=partitions), holes)


def _open(folder: Path, settings: LogSettings, clock: Clock) -> tuple[Database, dict[str, int]]:
    make_folder(folder)

    def fill(db: Database) -> None:
        epoch = Epoch.create()
        meta = {
            "epoch_ordinal": epoch.ordinal,
            "epoch_random": epoch.random,
            "partitions": settings.partitions,
            "created_ms": clock.unix_ms(),
        }
        db.ask("INSERT INTO meta(name, value) SELECT key, value FROM json_each(?)", (orjson.dumps(meta).decode(),))

    path = folder / schema.LOG_FILE
    db = open_file(
        path,
        tables=schema.LOG_TABLES,
        version=schema.LOG_FORMAT,
        fill=fill,
        upgrades=schema.LOG_UPGRADES,
        synchronous="full",
        cache_kib=WRITER_CACHE_KIB,
    )
    try:
        meta: dict[str, int] = orjson.loads(db.ask("SELECT json_group_object(name, value) FROM meta"))
        read_ends(db, meta["partitions"])
    except (apsw.Error, KeyError) as error:
        close(db)
        raise DamagedFileError(damaged(path, f"{type(error).__name__}: {error}")) from error
    return db, meta


def _connect_reader(path: Path, busy_ms: int) -> Database:
    db = connect(path, synchronous="full", cache_kib=READER_CACHE_KIB, busy_ms=busy_ms)
    db.setting("query_only", "on")
    return db
