"""The mark: how far the log in a folder was known to reach, in a small file beside it.

It is a hint of what was acknowledged: written about once a second, never before the log itself was synced. So a log
that ends before its mark has lost something: an older copy was put in its place, or its -wal file is missing. Offsets
that clients have seen would then be given to other events; it is refused until it is recovered into a new epoch.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

import msgspec

from shared.errors import StartError
from shared.position import Epoch
from shared.records import FormerEpoch

MARK_FILE: Final = "log.mark"
INTERVAL: Final = 1.0
"""Seconds between two marks of a log that grows."""

_logger = logging.getLogger(__name__)


class Mark(msgspec.Struct, frozen=True):
    """Where the partitions of an epoch ended, at least."""

    epoch: Epoch
    ends: list[int]


class _Log(Protocol):
    @property
    def epoch(self) -> Epoch: ...
    @property
    def former(self) -> Sequence[FormerEpoch]: ...
    @property
    def known_ends(self) -> Mapping[int, int]: ...
    async def ends(self) -> Mapping[int, int]: ...


_decoder = msgspec.json.Decoder(Mark)


def read_mark(folder: Path) -> Mark | None:
    """The mark, or None where there is none that can be read: then nothing is known."""
    try:
        return _decoder.decode((folder / MARK_FILE).read_bytes())
    except (OSError, msgspec.MsgspecError):
        return None


def write_mark(folder: Path, mark: Mark) -> None:
    """Replace the mark."""
    path = folder / MARK_FILE
    written = path.with_name(f"{MARK_FILE}.{os.getpid()}")
    written.write_bytes(msgspec.json.encode(mark))
    written.replace(path)


@asynccontextmanager
async def marked(folder: Path, log: _Log) -> AsyncGenerator[None]:
    """Compare a log that was opened with its mark, and keep that up to date. Raises `StartError`."""
    check_mark(folder, read_mark(folder), log.epoch, log.former, await log.ends())
    marking = asyncio.create_task(_mark(folder, log), name="log-mark")
    try:
        yield
    finally:
        marking.cancel()
        await asyncio.wait({marking})


def check_mark(
    folder: Path, mark: Mark | None, epoch: Epoch, former: Sequence[FormerEpoch], ends: Mapping[int, int]
) -> None:
    """Raise `StartError` where the log is not the one that was marked, nor one that came after it."""
    if mark is None or not any(ends.values()) or any(each.epoch == mark.epoch for each in former):
        return
    found = ""
    if mark.epoch == epoch:
        short = [(p, end) for p, end in enumerate(mark.ends) if ends.get(p, 0) < end]
        found = ", ".join(f"partition {p} ends at {ends.get(p, 0)}, but {end} offsets were there" for p, end in short)
    elif mark.epoch.ordinal > epoch.ordinal:
        found = f"it is of epoch {epoch}, but epoch {mark.epoch} was served from here"
    if found:
        raise StartError(
            f"{folder / 'log.db'} is not the log that was here before: {found}. If it is an older copy, or was copied "
            f"without its -wal file, put the right files back; or stop every process of cdrs and run 'cdrs log recover "
            f"--data {folder}': what is there is served on in a new epoch, and readers are told what is not"
        )


async def _mark(folder: Path, log: _Log) -> None:
    last: dict[int, int] = {}
    try:
        while True:
            await asyncio.sleep(INTERVAL)
            if log.known_ends == last:
                continue
            try:
                last = await asyncio.to_thread(_advance, folder, log, last)
            except Exception:  # the mark is a hint: the log goes on without
                _logger.exception("the mark of the log could not be written; trying again")
    finally:
        _advance(folder, log, last)


def _advance(folder: Path, log: _Log, last: dict[int, int]) -> dict[int, int]:
    """Write a mark if the log has grown; never one below what another process has marked."""
    ends = dict(log.known_ends)
    if ends == last:
        return last
    mark = read_mark(folder)
    before = mark.ends if mark is not None and mark.epoch == log.epoch else []
    with suppress(OSError):  # a full disk; the next one may do
        known = [max(end, before[p] if p < len(before) else 0) for p, end in sorted(ends.items())]
        write_mark(folder, Mark(log.epoch, known))
        return ends
    return last
