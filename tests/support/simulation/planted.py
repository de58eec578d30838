"""Bugs that are planted into the product for the length of a test, from outside: no line of the product knows of them.

Each is a mistake that somebody could make there. The suite is worth its name only if it finds every one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import cdrs.dedupe
import cdrs.history
import cdrs.judgement
import cdrs.persist
import cdrs.retention
import gateway.hub
import gateway.merging
import gateway.recent
import gateway.segments
import gateway.starts
import shared.position
from cdrs.judgement import Kind, Verdict
from gateway.gaps import Loss
from shared.records import FeedBatch, HistoryPage, PageQuery, Record
from shared.ring import PartitionRing


@contextmanager
def checkpoint_before_durable() -> Iterator[None]:
    """The persister counts a batch as stored before the store has said so."""

    async def persist(self: Any, batches: Sequence[FeedBatch]) -> None:
        for batch in batches:
            self._mine[batch.partition] = max(self._mine.get(batch.partition, 0), batch.next)
        async with self._slots:
            await self._store.persist(*batches)

    with mock.patch.object(cdrs.persist.Persister, "_persist", persist):
        yield


@contextmanager
def window_off() -> Iterator[None]:
    """No record is taken for a duplicate."""
    plain = cdrs.judgement.Judge.judge

    def judge(self: Any, records: Sequence[Record], *, upto: int) -> list[Verdict]:
        return [
            Verdict(Kind.VISIBLE, record.offset, record.append_ms) if verdict.kind is Kind.DUPLICATE else verdict
            for record, verdict in zip(records, plain(self, records, upto=upto), strict=True)
        ]

    with mock.patch.object(cdrs.judgement.Judge, "judge", judge):
        yield


@contextmanager
def base_ignored() -> Iterator[None]:
    """However old its look-up is, a record is not void."""
    plain = cdrs.judgement.Judge.judge

    def judge(self: Any, records: Sequence[Record], *, upto: int) -> list[Verdict]:
        import msgspec  # noqa: PLC0415

        return plain(self, [msgspec.structs.replace(record, base=record.offset) for record in records], upto=upto)

    with mock.patch.object(cdrs.judgement.Judge, "judge", judge):
        yield


@contextmanager
def cursor_off_by_one() -> Iterator[None]:
    """A cursor of one partition names the offset behind the next one."""

    def bytes_at(self: Any, next_offset: int) -> bytes:
        return right(self, next_offset + 1)

    def advance(self: Any, partition: int, next_offset: int) -> None:
        plain(self, partition, next_offset + 1)

    plain, right = shared.position.CursorWriter.advance, shared.position.PartitionCursors.bytes_at
    with (
        mock.patch.object(shared.position.PartitionCursors, "bytes_at", bytes_at),
        mock.patch.object(shared.position.CursorWriter, "advance", advance),
    ):
        yield


@contextmanager
def resume_at_latest() -> Iterator[None]:
    """Whoever comes back with a cursor starts at the live end."""

    async def cursor(self: Any, _text: str) -> gateway.starts.Start:
        return gateway.starts.Start(await self.latest())

    with mock.patch.object(gateway.starts._Placing, "cursor", cursor):
        yield


@contextmanager
def deletion_untold() -> Iterator[None]:
    """A gateway passes over what retention has deleted as if there never was anything."""

    def losses(page: HistoryPage | FeedBatch) -> list[tuple[Loss, int, int]]:
        return [("damage", start, stop) for start, stop in page.missing]

    with (
        mock.patch.object(gateway.merging, "losses", losses),
        mock.patch.object(gateway.recent, "losses", losses),
        mock.patch.object(gateway.hub, "losses", losses),
    ):
        yield


@contextmanager
def window_trimmed() -> Iterator[None]:
    """The log is asked to delete all that is deleted in the store, also what judgement begins with."""
    with mock.patch.object(cdrs.retention, "trimmed_to", lambda *, floor, **_: floor):
        yield


@contextmanager
def end_not_read() -> Iterator[None]:
    """A node that is behind answers for what it has not read as if there were nothing."""
    plain = cdrs.history.HistoryReader._page_back

    async def page_back(self: Any, query: PageQuery, ring: PartitionRing) -> HistoryPage:
        import msgspec  # noqa: PLC0415

        return await plain(self, msgspec.structs.replace(query, stop=min(query.stop, ring.next)), ring)

    with mock.patch.object(cdrs.history.HistoryReader, "_page_back", page_back):
        yield


@contextmanager
def copy_taken_for_own() -> Iterator[None]:
    """A node says that an event is new although another one has stored it a moment before."""
    with mock.patch.object(cdrs.dedupe.JudgedLane, "_credit", return_value=None):
        yield


BUGS: dict[str, Callable[[], Any]] = {
    "checkpoint-before-durable": checkpoint_before_durable,
    "window-off": window_off,
    "base-ignored": base_ignored,
    "cursor-off-by-one": cursor_off_by_one,
    "resume-at-latest": resume_at_latest,
    "deletion-untold": deletion_untold,
    "window-trimmed": window_trimmed,
    "end-not-read": end_not_read,
    "copy-taken-for-own": copy_taken_for_own,
}
