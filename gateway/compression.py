"""Compression of event streams: each event of a view is deflated once, whatever the number of its readers.

What a decoder remembers between two blocks is the text of the last 32 KiB and nothing else. So all readers of a view
who were given the same text since the compressor last forgot everything (a *boundary*) can be given the same bytes.
Whoever joins, or gets something that the others do not, is outside until the next boundary and gets stored blocks,
which hold the text as it is. To a decoder all of it is one gzip member (`gateway.gzip_body`).
"""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gateway.places import Places
from gateway.subscriber import DEFLATED, STORED, Subscriber

if TYPE_CHECKING:
    from gateway.views import View
    from shared.settings import SseSettings
    from shared.telemetry import Telemetry

PERIOD = 10.0
"""Seconds between two boundaries at most."""
EVENTS = 10
"""In a period; with fewer, a view is not worth a window."""
LEVEL = 4
"""Measured on events of 400 bytes with warm caches: 107 bytes in 12 us; level 6 99 bytes in 15 us, level 1 120 bytes in
10 us. The libraries beside the standard one (zlib-ng, ISA-L) are no faster where they are as small."""
MEMORY_LEVEL = 5
"""144 KiB a window instead of 256; events are short, and no larger for it."""


class Compression:
    """What the views of one gateway share: the bound on their windows, and the figures."""

    def __init__(self, settings: SseSettings, telemetry: Telemetry) -> None:
        self._least_readers = settings.compression_readers
        self.telemetry = telemetry
        self._most_windows = settings.compression_windows
        self._windows = 0
        self._readers = 0

    def are_enough(self, readers: int) -> bool:
        """Whether a view with so many is worth a window."""
        return readers >= self._least_readers

    def count_reader(self, change: int) -> None:
        """One open answer more or less."""
        self._readers += change
        self.telemetry.gzip_now(self._readers, self._windows)

    def take_window(self) -> bool:
        """Whether there may be one more; if so it counts."""
        if self._windows >= self._most_windows:
            return False
        self._count_window(1)
        return True

    def give_window(self) -> None:
        """It is not needed any more."""
        self._count_window(-1)

    def _count_window(self, change: int) -> None:
        self._windows += change
        self.telemetry.gzip_now(self._readers, self._windows)


class Deflater(Protocol):
    """`zlib.compressobj`, whose class has no public name."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self, mode: int, /) -> bytes: ...


class Segment(NamedTuple):
    """Consecutive frames, deflated together, up to a byte."""

    stop: int
    """Number of the frame behind them."""
    data: bytes


class Window:
    """The gzip readers of one view: those inside share a compressor's window, the others wait for the next boundary."""

    __slots__ = (
        "_began", "_deflater", "_excess", "_first", "_plain", "_reached", "_segments", "_shared", "places", "readers",
        "waiting",
    )  # fmt: skip

    def __init__(self, shared: Compression, *, end: int, now: float) -> None:
        self._shared = shared
        self.readers = 0
        self.waiting: dict[Subscriber, None] = {}
        """Those outside."""
        self.places = Places()
        """The view's text, counted from its first kept frame on."""
        self._deflater: Deflater | None = None
        self._segments: dict[int, Segment] = {}
        """By the number of their first frame; they follow each other."""
        self._reached = end
        """Frames below it have been deflated (or were, before there was a compressor): readers who lack none stand
        here."""
        self._began = now
        self._first = end
        """Where and when the last boundary was; without a compressor: where counting began."""
        self._plain = 0
        """Bytes deflated since."""
        self._excess = 0
        """Bytes that those outside who lack nothing got since, beyond what those inside did."""

    # --- readers ---------------------------------------------------------------------------------

    def enter(self, subscriber: Subscriber) -> None:
        """Somebody joins the view: outside."""
        self.readers += 1
        subscriber.form = subscriber.form & ~DEFLATED | STORED
        self.waiting[subscriber] = None

    def leave(self, subscriber: Subscriber) -> None:
        """Somebody leaves the view."""
        self.readers -= 1
        self.waiting.pop(subscriber, None)
        if not self.readers:
            self._stop()

    def part(self, subscriber: Subscriber) -> None:
        """Something goes to this one alone: it is outside from now on. Idempotent."""
        if subscriber.form & DEFLATED:
            subscriber.form ^= DEFLATED | STORED
            self.waiting[subscriber] = None
            if len(self.waiting) == self.readers:
                self._stop()

    def _admit(self) -> None:
        """At a boundary. Who still lacks frames before it waits for the next one."""
        for subscriber in list(filter(self._is_admissible, self.waiting)):
            subscriber.form ^= DEFLATED | STORED
            del self.waiting[subscriber]

    # --- frames ----------------------------------------------------------------------------------

    def advance(self, view: View, now: float, max_bytes: int) -> None:
        """Before frames are given out: deflate the next ones, where that is worth it."""
        if self._reached >= view.end:
            return
        if self._deflater is None:
            if not self._is_busy(view.end, now):
                self._reached = view.end
                return
            self._deflater = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, MEMORY_LEVEL)
            self._admit()
            self._extend(view, max_bytes, b"")
        elif not self._is_due(now):
            self._extend(view, max_bytes, b"")
        elif self._is_still_busy(now):
            self._begin(self._reached, now)
            self._admit()
            self._extend(view, max_bytes, self._deflater.flush(zlib.Z_FULL_FLUSH))
        else:
            self.stop(view)
            self._begin(view.end, now)
            self._reached = view.end

    def _begin(self, first: int, now: float) -> None:
        self._first, self._began = first, now
        self._plain = self._excess = 0

    def _is_busy(self, end: int, now: float) -> bool:
        """Whether there are readers and events enough for a compressor; if so there is room for one."""
        is_over = now - self._began > PERIOD
        are_enough = end - self._first >= EVENTS
        if is_over or are_enough:
            self._begin(self._reached if are_enough and not is_over else end, now)
        enough = are_enough and not is_over and self._shared.are_enough(self.readers)
        return enough and self._shared.take_window()

    def _is_still_busy(self, now: float) -> bool:
        """Half of that keeps it."""
        events = self._reached - self._first
        return events * PERIOD * 2 >= EVENTS * (now - self._began) and self._shared.are_enough(self.readers * 2)

    def _is_due(self, now: float) -> bool:
        """Whether the next boundary is. It costs each one inside about as much as a frame more; where those outside
        have already cost as much, it pays, if one of them can be admitted."""
        if now - self._began >= PERIOD:
            return True
        events = self._reached - self._first
        inside = self.readers - len(self.waiting)
        return self._excess * events >= inside * self._plain and any(map(self._is_admissible, self.waiting))

    def _is_admissible(self, subscriber: Subscriber) -> bool:
        """Whether it lacks nothing that has been deflated. Who is slow, stalls or still reads history does."""
        return subscriber.live and subscriber.seq == self._reached

    def _extend(self, view: View, max_bytes: int, prefix: bytes) -> None:
        """One more segment: all frames that are there, or as many as go into one write."""
        assert self._deflater is not None
        first = self._reached
        outside = sum(map(self._is_admissible, self.waiting))  # who lacks more gets nothing of it now
        frames = view.frames(first, max_bytes)
        text = b"".join(frames)
        began = time.thread_time()
        data = b"".join((prefix, self._deflater.compress(text), self._deflater.flush(zlib.Z_SYNC_FLUSH)))
        self._shared.telemetry.deflated(len(frames), len(text), len(data), time.thread_time() - began)
        self._reached = first + len(frames)
        self._segments[first] = Segment(self._reached, data)
        self._plain += len(text)
        self._excess += outside * (len(text) - len(data))

    def joined(self, seq: int, max_bytes: int) -> tuple[bytes, int]:
        """For those inside: what is deflated from ``seq`` on, in one write, and the number of the frame behind it."""
        segment = self._segments[seq]
        parts, stop, size = [segment.data], segment.stop, len(segment.data)
        while (after := self._segments.get(stop)) is not None and size + len(after.data) <= max_bytes:
            parts.append(after.data)
            size += len(after.data)
            stop = after.stop
        return b"".join(parts), stop

    def forget(self, view: View, first: int) -> None:
        """Frames below ``first`` are not kept any more."""
        if self._reached < first:  # too many at once: whoever was inside has to read history
            self.stop(view)
            self._reached = self._first = first
        for start in [start for start in self._segments if start < first]:
            del self._segments[start]

    def stop(self, view: View) -> None:
        """No compressor any more: everybody is outside."""
        for subscriber in view.subscribers:
            if subscriber.form & DEFLATED:
                subscriber.form ^= DEFLATED | STORED
                self.waiting[subscriber] = None
        self._stop()

    def _stop(self) -> None:
        if self._deflater is not None:
            self._deflater = None
            self._segments.clear()
            self._shared.give_window()
