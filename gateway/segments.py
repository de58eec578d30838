"""Stretches of history as ready frames, shared by all subscribers that stand at the same place and want the same.

After a gateway has died its subscribers come back together, most of them from the same few places. Each stretch is read
and built once, by whoever needs its next piece first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import NamedTuple

from gateway.gaps import loss
from gateway.hub import Hub
from gateway.merging import Missing, Pages, merged
from gateway.subscriber import Subscriber
from gateway.views import Selection, View
from shared.errors import ServerError
from shared.position import CursorWriter, cursor_after
from shared.records import Record
from shared.sse import cursor_block

CHUNK_BYTES = 32 * 1024
SEGMENT_BYTES = 512 * 1024
"""A segment ends behind the event that crosses this; another one follows."""
KEPT = 256
KEPT_BYTES = 16 * 1024 * 1024
"""How many are kept for others, and how large they may be together."""
KEPT_SECONDS = 5.0
"""For so long a segment, and behind it what has happened since, waits for others: as long as a crowd takes to come."""

Key = tuple[Selection, tuple[tuple[int, int], ...]]


class Chunk(NamedTuple):
    """Consecutive frames as one write."""

    data: bytes
    cursor: bytes
    """The cursor of the last event; empty where there is none."""
    position: Mapping[int, int]
    """Per partition the next offset behind it."""
    gaps: Sequence[str]
    """Reasons of the gaps that are told in it."""


class Segment:
    """History of one selection from a position on, up to the place where the live view stood when it was begun, or to
    `SEGMENT_BYTES`."""

    def __init__(
        self,
        hub: Hub,
        pages: Pages,
        view: View,
        start: Mapping[int, int],
        target: Mapping[int, int],
        *,
        grown: Callable[[Segment, int], None],
    ) -> None:
        """``grown``: told of each chunk, and how many bytes it has."""
        self.view = view
        self.seq = view.end
        """The number of the view's frame that follows `target`."""
        self.target = target
        """Where the view stood: per partition the next offset."""
        self.is_over = False
        """There will be no more chunks."""
        self.is_broken = False
        """Reading failed or was given up; what is here is right all the same."""
        self.reaches_view = False
        """It ends at `target`."""
        self.size = 0
        """Bytes of the chunks that it keeps."""
        self.kept_until: asyncio.TimerHandle | None = None
        """When nobody else may use it any more; None from then on."""
        self._hub = hub
        self._selection = view.selection
        self._position = dict(start)
        self._error: ServerError | None = None
        self._grown = grown
        self._chunks: list[Chunk | None] = []
        """None: given to everybody."""
        self._freed = 0
        self._readers = 0
        self._more = self._build(pages)
        self._reading = asyncio.Lock()

    def is_joined_by(self, subscriber: Subscriber) -> bool:
        """Have a subscriber stand where it ends; False where that place is gone."""
        return self._hub.join_at(subscriber, self.view, self.seq)

    @contextmanager
    def reading(self) -> Generator[None]:
        """Whoever takes chunks is in this context while it does."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1

    async def chunk(self, number: int) -> Chunk | None:
        """A chunk by its number, for a reader that has taken those before; None where there is none. Raises the
        `ServerError` that reading ended with."""
        if self.kept_until is None and self._readers == 1:
            self._free(number)
        while number >= len(self._chunks) and not self.is_over:
            async with self._reading:
                if number >= len(self._chunks) and not self.is_over:
                    await self._read()
        if number < len(self._chunks):
            return self._chunks[number]
        if self._error is not None:
            raise type(self._error)(self._error.detail, retry_after=self._error.retry_after)
        return None

    def _free(self, stop: int) -> None:
        """Keep no chunk below ``stop``: its only reader is there, and there will be no other one."""
        for number in range(self._freed, stop):
            chunk, self._chunks[number] = self._chunks[number], None
            self.size -= len(chunk.data) if chunk is not None else 0
        self._freed = max(self._freed, stop)

    async def _read(self) -> None:
        try:
            chunk = await anext(self._more, None)
        except BaseException as error:  # cancelled: whoever read has gone, and another one begins anew
            self.is_broken = self.is_over = True
            if not isinstance(error, ServerError):
                raise
            self._error = error
            return
        if chunk is None:
            self.is_over = True
        else:
            self.size += len(chunk.data)
            self._chunks.append(chunk)
            self._grown(self, len(chunk.data))

    async def _build(self, pages: Pages) -> AsyncGenerator[Chunk]:
        position, selection = self._position, self._selection
        vector = CursorWriter(self._hub.epoch, {**self.target, **position} if selection.vector else {})
        frames: list[bytes] = []
        gaps: list[str] = []
        size = total = 0
        cursor = b""
        clock = asyncio.get_running_loop().time
        due = clock() + self._hub.heartbeat
        async with aclosing(merged(pages, selection, position, self.target)) as records:
            async for record in records:
                if record is None:
                    if clock() >= due:  # nothing, or little, for so long: tell how far it was looked at, to go on there
                        cursor = self._cursor_at(position, vector)
                        yield Chunk(b"".join([*frames, cursor_block(cursor)]), cursor, dict(position), gaps)
                        frames, size, gaps = [], 0, []
                        due = clock() + self._hub.heartbeat
                    continue
                if isinstance(record, Missing):
                    gap = loss(self._hub.epoch, *record[:4])
                    frames.append(gap.block())
                    gaps.append(gap.reason)
                    continue
                cursor = self._cursor(record, vector)
                frame = self._hub.frame(record, cursor, selection.shape)
                frames.append(frame)
                size += len(frame)
                if size >= CHUNK_BYTES:
                    total += size
                    yield Chunk(b"".join(frames), cursor, dict(position), gaps)
                    frames, size, gaps = [], 0, []
                    due = clock() + self._hub.heartbeat
                    if total >= SEGMENT_BYTES:
                        return
        self.reaches_view = True
        if frames or position != {p: self.target[p] for p in position}:
            yield Chunk(b"".join(frames), cursor, dict(position), gaps)

    def _cursor(self, record: Record, vector: CursorWriter) -> bytes:
        if not self._selection.vector:
            return cursor_after(self._hub.epoch, record.partition, record.offset).encode()
        vector.advance(record.partition, record.offset + 1)
        return vector.bytes()

    def _cursor_at(self, position: Mapping[int, int], vector: CursorWriter) -> bytes:
        if not self._selection.vector:
            return CursorWriter(self._hub.epoch, position).bytes()
        for partition, offset in position.items():
            vector.advance(partition, offset)
        return vector.bytes()


class Segments:
    """The segments of one gateway that may still be of use to others."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._kept: OrderedDict[Key, Segment] = OrderedDict()
        self._size = 0
        """Bytes of all that are kept."""

    def __len__(self) -> int:
        return len(self._kept)

    def at(self, pages: Pages, subscriber: Subscriber, selection: Selection, position: Mapping[int, int]) -> Segment:
        """History of a selection from this position on: what others have read, if the live view can still be joined
        where it ends. The subscriber stands there already."""
        key: Key = (selection, tuple(sorted(position.items())))
        segment = self._kept.get(key)
        if segment is not None and not segment.is_broken and segment.is_joined_by(subscriber):
            return segment
        target = self._hub.join(subscriber, selection)
        assert subscriber.view is not None
        if segment is not None:
            self._forget(key, segment)
        segment = self._kept[key] = Segment(self._hub, pages, subscriber.view, position, target, grown=self._grown)
        segment.view.hold(segment, segment.seq)
        segment.kept_until = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget, key, segment)
        self._forget_oldest()
        return segment

    def _grown(self, segment: Segment, size: int) -> None:
        if segment.kept_until is not None:
            self._size += size
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        while len(self._kept) > KEPT or self._size > KEPT_BYTES:
            self._forget(*next(iter(self._kept.items())))

    def _forget(self, key: Key, segment: Segment) -> None:
        """Give it to nobody else any more; those who read it go on. Idempotent."""
        if segment.kept_until is None:
            return
        segment.view.release(segment)
        segment.kept_until.cancel()  # it would hold the chunks until then
        segment.kept_until = None
        self._size -= segment.size
        del self._kept[key]
