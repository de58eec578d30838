"""The one thread that writes ``log.db``: group commit over all partitions and everybody who waits.

Between two commits it takes all that has gathered, so a commit grows with the load and its fsync is shared. Every step
is one large statement (see `shared.backends.embedded.reading` for why).
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import apsw

from shared.backends.embedded.calls import Answer, AppendCall, Call, CreateCall, Outcome
from shared.backends.embedded.database import Database, unavailable
from shared.backends.embedded.plan import LogState, Plan, Stream
from shared.backends.embedded.reading import Original, read_ends, read_originals, read_stream_ids
from shared.backends.embedded.writing import write
from shared.clock import Clock
from shared.errors import CdrsError, InternalError, OutcomeUnknown, StreamConflict, Unavailable
from shared.records import LogBatch

LOCK_SLICE_MS: Final = 50
"""How long SQLite waits for the lock before we look whose deadline has passed."""
GROUP_BYTES: Final = 16 * 1024 * 1024
"""Size of a transaction. What has gathered beyond it is the next one."""
KNOWN_STREAMS: Final = 100_000
"""Streams remembered between commits."""
CHECKPOINT_PAGES: Final = 2_000
"""Size of the -wal file from which it is written back when nobody waits, in pages of 4 KiB."""
CHECKPOINT_PAGES_BUSY: Final = 16_000
"""The same when somebody does."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Committed:
    """What the event loop hears after a transaction."""

    outcomes: list[Outcome]
    batches: list[LogBatch]
    ends: dict[int, int]
    """Where all partitions stood right after the commit, whoever wrote; empty where nothing was committed."""


class Writer:
    """Owns the writing connection. All methods but `submit` and `close` run in its thread."""

    def __init__(self, db: Database, *, partitions: int, clock: Clock, on_commit: Callable[[Committed], None]) -> None:
        self._db = db
        self._partitions = partitions
        self._clock = clock
        self._on_commit = on_commit
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Sequence[Call] | None] = queue.SimpleQueue()
        self._state = LogState(ends={}, next_stream=1)
        self._version: int | None = None
        """What ``data_version`` was when the state was right; another value: another process has written."""
        self._wal_pages = 0
        self._closing = False
        db.set_busy_timeout(LOCK_SLICE_MS)
        db.wal_autocheckpoint(0)
        db.set_wal_hook(self._note_wal)
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    # --- on the event loop

    def submit(self, calls: Sequence[Call]) -> None:
        """Have something written. The caller bounds how much waits here; every call is answered once."""
        self._queue.put(calls)

    async def close(self, timeout: float) -> None:
        """Write what waits, then end the thread; give up after so many seconds."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, timeout)
        if self._thread.is_alive():
            _logger.warning("the log's writer did not end within %.1f s", timeout)

    # --- in the thread

    def _run(self) -> None:
        while not self._closing:
            calls = self._gather(self._take(self._queue.get()))
            while calls:
                calls = self._serve(calls)
            self._write_back()

    def _take(self, calls: Sequence[Call] | None) -> list[Call]:
        if calls is None:
            self._closing = True
            return []
        return list(calls)

    def _gather(self, calls: list[Call]) -> list[Call]:
        """Add what has come meanwhile."""
        size = sum([call.size for call in calls])
        while size < GROUP_BYTES:
            try:
                more = self._take(self._queue.get_nowait())
            except queue.Empty:
                break
            calls += more
            size += sum([call.size for call in more])
        return calls

    def _serve(self, calls: list[Call]) -> list[Call]:
        """Write these calls and answer them; return those that go on waiting for the lock."""
        try:
            self._db.ask("BEGIN IMMEDIATE")
        except apsw.BusyError as error:
            return self._still_waiting(self._gather(calls), unavailable(error))
        except apsw.Error as error:
            self._answer([(call, unavailable(error)) for call in calls])
            return []
        claimed: list[Call] = []
        taken_back: list[Outcome] = []
        for call in calls:
            if call.claim():
                claimed.append(call)
            else:
                taken_back.append((call, Unavailable("taken back")))
        self._answer(taken_back)
        try:
            self._transact(claimed)
        finally:
            self._roll_back()
        return []

    def _still_waiting(self, calls: list[Call], error: Unavailable) -> list[Call]:
        now = math.inf if self._closing else time.monotonic()
        self._answer([(call, error) for call in calls if call.deadline <= now])
        return [call for call in calls if call.deadline > now]

    def _transact(self, calls: Sequence[Call]) -> None:
        try:
            try:
                plan, outcomes = self._prepare(calls, trusting=True)
                self._write(plan)
            except apsw.ConstraintError:
                # an id said to be new was not
                self._db.ask("ROLLBACK; BEGIN IMMEDIATE")
                plan, outcomes = self._prepare(calls, trusting=False)
                self._write(plan)
        except apsw.Error as error:
            self._answer([(call, unavailable(error)) for call in calls])
        except Exception:  # one bad call must end neither the thread nor the others
            _logger.exception("a transaction of %d calls failed", len(calls))
            self._serve_one_by_one(calls)
        else:
            self._commit(plan, outcomes)

    def _serve_one_by_one(self, calls: Sequence[Call]) -> None:
        self._roll_back()
        if len(calls) == 1:
            self._answer([(calls[0], InternalError("the append failed; the server's messages say why"))])
            return
        for call in calls:
            call.release()
            waiting = [call]
            while waiting:
                waiting = self._serve(waiting)

    def _prepare(self, calls: Sequence[Call], *, trusting: bool) -> tuple[Plan, list[Outcome]]:
        self._refresh(calls)
        stored = self._look_up(calls, trusting=trusting)
        plan = Plan(self._state, self._clock.unix_ms())
        return plan, [(call, _enter(plan, call, stored)) for call in calls]

    def _refresh(self, calls: Sequence[Call]) -> None:
        version = self._db.setting("data_version")
        if version != self._version:
            self._state.ends = dict(read_ends(self._db, self._partitions))
            self._state.next_stream = self._db.ask("SELECT coalesce(max(id), 0) + 1 FROM streams")
            self._version = version
        known = self._state.streams
        if len(known) > KNOWN_STREAMS:
            known.clear()
        names = {event.stream for call in calls if isinstance(call, AppendCall) for event in call.events}
        names.update(call.name for call in calls if isinstance(call, CreateCall))
        unknown = [name for name in names if name not in known]
        for name, (number, spread) in read_stream_ids(self._db, unknown).items():
            known[name] = Stream(number, spread)

    def _look_up(self, calls: Sequence[Call], *, trusting: bool) -> dict[bytes, Original]:
        identities = [
            event.identity
            for call in calls
            if isinstance(call, AppendCall)
            for event in call.events
            if not (event.fresh and trusting)
        ]
        return read_originals(self._db, identities)

    def _write(self, plan: Plan) -> None:
        if plan.is_empty():
            return
        write(self._db, plan.rows())

    def _commit(self, plan: Plan, outcomes: list[Outcome]) -> None:
        try:
            self._db.ask("COMMIT")
        except (apsw.BusyError, apsw.FullError) as error:
            self._answer([(call, unavailable(error)) for call, _ in outcomes])
            return
        except apsw.Error as error:
            _logger.error("a commit failed: %s: %s", type(error).__name__, error)
            self._version = None
            unknown = OutcomeUnknown("the log failed while it committed", retry_after=5.0)
            self._answer([(call, unknown) for call, _ in outcomes])
            return
        batches = plan.committed()
        ends = {partition: end.next for partition, end in self._state.ends.items()}
        self._answer(outcomes, batches, ends)

    def _roll_back(self) -> None:
        try:
            self._db.roll_back()
        except apsw.Error as error:
            _logger.error("a rollback failed: %s", error)

    def _answer(
        self, outcomes: list[Outcome], batches: list[LogBatch] | None = None, ends: dict[int, int] | None = None
    ) -> None:
        if not outcomes:
            return
        try:
            self._loop.call_soon_threadsafe(self._on_commit, Committed(outcomes, batches or [], ends or {}))
        except RuntimeError:
            _logger.warning("the event loop has ended before the log's writer")

    def _note_wal(self, _: apsw.Connection, __: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _write_back(self) -> None:
        if self._wal_pages > (CHECKPOINT_PAGES if self._queue.empty() else CHECKPOINT_PAGES_BUSY):
            self._wal_pages = 0
            try:
                self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            except (apsw.BusyError, apsw.LockedError):
                return  # another process is at it
            except apsw.Error as error:
                _logger.error("the log's -wal file could not be written back: %s", error)


def _enter(plan: Plan, call: Call, stored: dict[bytes, Original]) -> Answer:
    try:
        if isinstance(call, AppendCall):
            return plan.append(call.partition, call.events, base=call.base, stored=stored)
        assert isinstance(call, CreateCall)
        known = plan.stream(call.name)
        if known is None:
            plan.create_stream(call.name, call.spread)
        elif known.spread != call.spread:
            raise StreamConflict(f"the stream exists with spread {known.spread}")
    except CdrsError as error:
        return error
    return ()
