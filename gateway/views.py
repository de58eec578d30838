"""Views: all subscribers that asked for the same thing share one, and with it their frames.

A view on exact streams owns nothing but its entry in the index; what it holds of events are references to frames that
every view of the same shape and kind of id shares, and only as long as a subscriber has not been given them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from gateway.compression import Compression, Window
from gateway.gzip_body import Place, stored
from gateway.subscriber import DEFLATED, FRAMED, STORED
from shared.filters import Filter
from shared.sse import Shape
from shared.validation import Pattern

if TYPE_CHECKING:
    from gateway.subscriber import Subscriber


_pattern = lru_cache(maxsize=4096)(Pattern.parse)


class Selection(NamedTuple):
    """What a subscription asks for. Equal selections share a view."""

    streams: tuple[str, ...]
    """Exact names, sorted."""
    patterns: tuple[str, ...]
    """Patterns with wildcards, sorted."""
    filter: Filter | None
    shape: Shape
    partitions: tuple[int, ...]
    """Those whose history can hold matching events."""
    vector: bool
    """Ids are the gateway's whole vector; else the record's own position, for selections within one partition."""

    def matches_stream(self, stream: str) -> bool:
        """Whether a stream is among the selected ones."""
        return stream in self.streams or any(_pattern(p).matches(stream) for p in self.patterns)


class Joined(NamedTuple):
    """Consecutive frames as one write."""

    chunk: bytes
    next_seq: int
    cursor: bytes
    """The cursor of the last of them."""
    events: int


def http_chunk(*parts: bytes) -> bytes:
    """Bytes as one chunk of an HTTP/1.1 body (RFC 9112, section 7.1); there must be some."""
    if len(parts) == 1:
        return b"%x\r\n%b\r\n" % (len(parts[0]), parts[0])
    return b"".join((b"%x\r\n" % sum(map(len, parts)), *parts, b"\r\n"))


class View:
    """The live end of one selection: frames that some subscriber still needs, numbered from the view's birth."""

    __slots__ = (
        "_cursors", "_frames", "_held", "_joined_low", "_joins", "_size", "first", "selection", "subscribers", "window",
    )  # fmt: skip

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.subscribers: dict[Subscriber, None] = {}
        self.first = 0
        """Number of the oldest frame kept."""
        self._frames: list[bytes] = []
        self._held: dict[object, int] | None = None
        self._joined_low = 0
        """The lowest place at which somebody has joined since the last sweep began."""
        self._cursors: list[bytes] = []
        self._size = 0
        self._joins: dict[tuple[int, int], Joined] = {}
        self.window: Window | None = None
        """Its gzip readers, where there are any."""

    @property
    def end(self) -> int:
        """The number the next frame will get."""
        return self.first + len(self._frames)

    def begin_sweep(self) -> int:
        """From here on, who joins may stand below what the sweep finds; `trim` knows of them. Returns `end`."""
        self._joined_low = self.end
        return self.end

    def append(self, frame: bytes, cursor: bytes) -> None:
        """A matching event happened."""
        self._frames.append(frame)
        self._cursors.append(cursor)
        self._size += len(frame)
        if self._joins:
            self._joins.clear()

    def extend(self, frames: Sequence[bytes], cursors: Sequence[bytes], size: int) -> None:
        """Several of them, of so many bytes together."""
        self._frames += frames
        self._cursors += cursors
        self._size += size
        if self._joins:
            self._joins.clear()

    def frames(self, seq: int, max_bytes: int) -> list[bytes]:
        """From ``seq`` on as many as go into ``max_bytes``, one at least; ``seq`` is kept and there."""
        at = seq - self.first
        stop = at + 1
        size = len(self._frames[at])
        while stop < len(self._frames) and size + len(self._frames[stop]) <= max_bytes:
            size += len(self._frames[stop])
            stop += 1
        return self._frames[at:stop]

    def joined(self, seq: int, *, max_bytes: int, form: int) -> Joined:
        """Frames from ``seq`` on as one write of at most ``max_bytes`` (one frame at least) in a subscriber's form;
        ``seq`` is kept and there. Cached: subscribers that stand at the same place share the very bytes."""
        known = self._joins.get((seq, form))
        if known is not None:
            return known
        if form & DEFLATED:
            assert self.window is not None
            text, after = self.window.joined(seq, max_bytes)
        else:
            frames = self.frames(seq, max_bytes)
            after = seq + len(frames)
            text = frames[0] if len(frames) == 1 else b"".join(frames)
            if form & STORED:
                text = stored(text)
        chunk = http_chunk(text) if form & FRAMED else text
        join = self._joins[seq, form] = Joined(chunk, after, self._cursors[after - 1 - self.first], after - seq)
        return join

    def taken_by_one(self, *, max_bytes: int, form: int) -> Joined | None:
        """All frames as one write, and forgotten, for a view's only reader, who stands before the first of them. None
        where that is not all there is to it: a share of a compressor, frames that are held, or more than one write."""
        frames = self._frames
        if not frames or form & ~FRAMED or self._held is not None or self._size > max_bytes:
            return None
        text = frames[0] if len(frames) == 1 else b"".join(frames)
        after = self.first + len(frames)
        joined = Joined(http_chunk(text) if form & FRAMED else text, after, self._cursors[-1], len(frames))
        self.first = self._joined_low = after
        self._frames, self._cursors, self._size = [], [], 0
        if self._joins:
            self._joins.clear()
        return joined

    def hold(self, owner: object, seq: int) -> None:
        """Keep frames from here on for those who may join there, within bounds, until `release`."""
        if self._held is None:
            self._held = {}
        self._held[owner] = seq

    def release(self, owner: object) -> None:
        """The inverse of `hold`. Idempotent."""
        if self._held is not None and self._held.pop(owner, None) is not None and not self._held:
            self._held = None

    def trim(self, low: int, *, max_bytes: int) -> None:
        """Forget frames below ``low``, which every subscriber has been given and nobody holds, and the oldest beyond
        ``max_bytes``. Whoever lacked one of those has to read history: it needs none of the others either."""
        self._forget(self._needed(min(low, self._joined_low)) - self.first, is_lost=False)
        drop, kept = 0, self._size
        while kept > max_bytes:
            kept -= len(self._frames[drop])
            drop += 1
        if drop:
            self._forget(drop, is_lost=True)
            low = min([each.seq for each in self.subscribers if each.seq >= self.first], default=self.end)
            self._forget(self._needed(low) - self.first, is_lost=False)

    def _needed(self, low: int) -> int:
        """The lowest place that is of use to somebody: ``low``, or one that is held and still there."""
        if self._held is not None:
            low = min([low, *[seq for seq in self._held.values() if seq >= self.first]])
        return min(low, self.end)

    def _forget(self, drop: int, *, is_lost: bool) -> None:
        """Forget so many frames, which somebody lacks or nobody."""
        if drop <= 0:
            return
        first = self.first + drop
        if self.window is not None:
            self._count(self.window, first, is_lost=is_lost)
        self._size -= sum(map(len, self._frames[:drop]))
        del self._frames[:drop]
        del self._cursors[:drop]
        self.first = first
        self._joins.clear()

    # --- subscribers -----------------------------------------------------------------------------

    def add(self, subscriber: Subscriber, seq: int, compression: Compression, now: float) -> None:
        """Place a subscriber before a frame that is kept, or at the end."""
        subscriber.view, subscriber.seq = self, seq
        self._joined_low = min(self._joined_low, seq)
        self.subscribers[subscriber] = None
        if subscriber.gzip is not None:
            if self.window is None:
                self.window = Window(compression, end=self.end, now=now)
            self.window.enter(subscriber)
            subscriber.gzip.enter(self.place(seq))

    def remove(self, subscriber: Subscriber) -> None:
        """It gets no more of this."""
        subscriber.view = None
        del self.subscribers[subscriber]
        if subscriber.gzip is not None and self.window is not None:
            if subscriber.seq >= self.first:
                subscriber.gzip.leave(self.place(subscriber.seq))
            self.window.leave(subscriber)
            if not self.window.readers:
                self.window = None

    def place(self, seq: int) -> Place:
        """Where a reader stands in the view's text; ``seq`` is kept or the end."""
        assert self.window is not None
        return self.window.places.at(seq - self.first, self._frames)

    def interrupt(self, subscriber: Subscriber, blocks: bytes) -> None:
        """One of its gzip readers is given something that the others are not."""
        assert self.window is not None
        assert subscriber.gzip is not None
        if subscriber.seq < self.first:  # those frames are gone; it will not get any before it has joined again
            subscriber.gzip.add(blocks)
            return
        place = self.place(subscriber.seq)
        subscriber.gzip.leave(place)
        subscriber.gzip.add(blocks)
        subscriber.gzip.enter(place)
        self.window.part(subscriber)

    def _count(self, window: Window, first: int, *, is_lost: bool) -> None:
        """Frames below ``first`` are about to be forgotten: keep the checksum of all, and of readers who lack some."""
        self.place(first)  # counted, while they are here
        if is_lost:
            for subscriber in self.subscribers:
                if subscriber.gzip is not None and self.first <= subscriber.seq < first:
                    subscriber.gzip.leave(self.place(subscriber.seq))
        window.places.forget(first - self.first)
        window.forget(self, first)
