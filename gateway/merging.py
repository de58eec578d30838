"""Records of several partitions in one order: by append time where they meet, by offset within each."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from gateway.gaps import Loss, losses
from gateway.views import Selection
from shared.events import attributes_of
from shared.records import HistoryPage, PageQuery, Record

PAGE_RECORDS = 512
PAGE_BYTES = 256 * 1024
_NOT_THERE_YET = 0.02


class Pages(Protocol):
    """Whoever answers page queries: `gateway.replay.HistoryReader`, or one with bounds around it."""

    async def page(self, query: PageQuery) -> HistoryPage: ...


class Missing(NamedTuple):
    """A range of offsets in the place of the records that history has not got there. It may have held anything."""

    reason: Loss
    partition: int
    offset: int
    stop: int
    append_ms: int
    """That of what stands before it."""


Item = Record | Missing


def _behind(item: Item) -> int:
    return item.stop if isinstance(item, Missing) else item.offset + 1


class Run:
    """One partition's records of a selection in [start, stop), page by page."""

    __slots__ = (
        "_buffer", "_covered", "_last_ms", "_pages", "_selection", "_streams", "head", "next", "partition", "stop",
    )  # fmt: skip

    def __init__(self, pages: Pages, selection: Selection, *, partition: int, start: int, stop: int) -> None:
        self._pages = pages
        self._selection = selection
        self._streams = None if selection.patterns else list(selection.streams)
        self._buffer: Iterator[Item] = iter(())
        self._covered = start
        self._last_ms = 0
        self.partition = partition
        self.stop = stop
        self.next = start
        """Everything below has been given out or does not match."""
        self.head: Item | None = None
        """The next to be given out; None at the end."""

    async def step(self) -> bool:
        """Give out the head and look for the one behind it, on one more page at most. False: it may be further on."""
        if self.head is not None:
            self.next = _behind(self.head)
        self.head = next(self._buffer, None)
        if self.head is None:
            self.next = max(self._covered, self.next)
            if self._covered >= self.stop:
                return True
            await self._fill()
            self.head = next(self._buffer, None)
        self.next = max(self._covered, self.next) if self.head is None else self.head.offset
        return self.head is not None or self._covered >= self.stop

    async def _fill(self) -> None:
        page = await self._pages.page(
            PageQuery(self.partition, self._covered, self.stop, PAGE_RECORDS, PAGE_BYTES, self._streams)
        )
        if page.next <= self._covered and not page.records:
            await asyncio.sleep(_NOT_THERE_YET)  # the node that answered has not read so far yet
        lost = losses(page)
        self._covered = max(page.next, self._covered)
        # Without a hold on this object: what was read would stay until the collector came.
        if lost:
            self._buffer = _with_missing(self._selection, self.partition, page.records, lost, self._last_ms)
        else:
            self._buffer = _wanted(self._selection, page.records)
        if page.records:
            self._last_ms = page.records[-1].append_ms


def _wanted(selection: Selection, records: Sequence[Record]) -> Iterator[Record]:
    for record in records:
        if selection.patterns and not selection.matches_stream(record.stream):
            continue
        if selection.filter is None or selection.filter.matches(attributes_of(record)):
            yield record


def _with_missing(
    selection: Selection,
    partition: int,
    records: Sequence[Record],
    lost: Sequence[tuple[Loss, int, int]],
    last_ms: int,
) -> Iterator[Item]:
    at = 0
    for reason, first, stop in lost:
        before = at
        while at < len(records) and records[at].offset < first:
            last_ms, at = records[at].append_ms, at + 1
        yield from _wanted(selection, records[before:at])
        yield Missing(reason, partition, first, stop, last_ms)
    yield from _wanted(selection, records[at:])


async def merged(
    pages: Pages, selection: Selection, position: dict[int, int], stops: Mapping[int, int]
) -> AsyncGenerator[Item | None, None]:
    """The selection's records from ``position`` up to ``stops``, and in their places what history has lost. None: on a
    page there was nothing of it, and the looking goes on.

    ``position`` moves along: whenever the iterator rests, or has failed, everything below it has been given out or does
    not match, so reading can go on from there.
    """
    runs: list[tuple[int, int, Run]] = []
    for partition, start in list(position.items()):
        run = Run(pages, selection, partition=partition, start=start, stop=max(stops[partition], start))
        while not await _step(run, position):
            yield None
        if run.head is not None:
            runs.append((run.head.append_ms, partition, run))
    heapq.heapify(runs)
    while runs:
        _, partition, run = runs[0]
        head = run.head
        assert head is not None
        position[partition] = _behind(head)
        yield head
        while not await _step(run, position):
            yield None
        if run.head is not None:
            heapq.heapreplace(runs, (run.head.append_ms, partition, run))
        else:
            heapq.heappop(runs)


async def _step(run: Run, position: dict[int, int]) -> bool:
    try:
        return await run.step()
    finally:
        position[run.partition] = run.next
