"""Reading server-sent events: a parser as the HTML standard (9.2.6) wants it, and a subscription that resumes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import aiohttp

from services.cli.client import problem_of, unreachable
from shared.errors import ServerError, Unavailable

SILENCE = 60.0
"""Seconds without a byte after which a stream counts as broken: the gateway sends something every 15 s."""
LONGEST_PAUSE = 10.0
MAX_LINE = 32 * 1024 * 1024
"""Longest line taken, in bytes: far above the largest event."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One dispatched block."""

    event: str
    """The ``event:`` field; ``message`` where there was none."""
    data: bytes
    last_event_id: str


class EventParser:
    """Bytes in, events out. Sans I/O.

    Lines end with CR, LF or CRLF; one leading byte order mark is dropped; an id with NUL is ignored; ``retry`` counts
    only when it is all ASCII digits; a block without data dispatches nothing (its id counts all the same); an
    unfinished last block is discarded by whoever stops feeding.
    """

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = self._id = last_event_id
        self.retry_ms: int | None = None
        self._buffer = bytearray()
        self._started = False
        self._skip_lf = False
        self._data: list[bytes] = []
        self._event = ""

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        """Take bytes as they arrive; give the events they complete."""
        buffer = self._buffer
        buffer += chunk
        if not self._started:
            if len(buffer) < 3 and b"\xef\xbb\xbf".startswith(buffer):
                return
            self._started = True
            if buffer.startswith(b"\xef\xbb\xbf"):
                del buffer[:3]
        for line in self._lines():
            event = self._line(line)
            if event is not None:
                yield event
        if len(buffer) > MAX_LINE:
            raise ValueError("a line without end")

    def _lines(self) -> Iterator[bytes]:
        # A CR at the very end is a line's end already; an LF that follows it belongs to it.
        text = bytes(self._buffer)
        if self._skip_lf and text:
            text = text.removeprefix(b"\n")
            self._skip_lf = False
        self._buffer.clear()
        if b"\r" in text:
            self._skip_lf = text.endswith(b"\r")
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *complete, rest = text.split(b"\n")
        self._buffer += rest
        yield from complete

    def _line(self, line: bytes) -> ServerEvent | None:
        if not line:
            return self._dispatch()
        name, colon, value = line.partition(b":")
        if colon and not name:
            return None
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\x00" not in value:
            self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit():
            self.retry_ms = int(value)
        return None

    def _dispatch(self) -> ServerEvent | None:
        self.last_event_id = self._id
        data, event = self._data, self._event
        self._data, self._event = [], ""
        return ServerEvent(event or "message", b"\n".join(data), self.last_event_id) if data else None


@dataclass(frozen=True, slots=True)
class Reconnect:
    """The connection ended; another attempt follows."""

    reason: str
    pause: float


class Subscription:
    """An event stream that goes on: after any break it asks again from the last id it was given."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        params: Sequence[tuple[str, str]] = (),
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._session = session
        self._url = url
        self._params = params
        self._headers = {"Accept": "text/event-stream", **(headers or {})}
        self._retry_ms = 1000
        self._failures = 0
        self.last_event_id = ""

    async def events(self) -> AsyncGenerator[ServerEvent | Reconnect, None]:
        """For ever. Raises the problem's class where the gateway refuses the subscription for good, and `Unavailable`
        where the very first attempt finds nobody."""
        connected = False
        while True:
            try:
                async with aclosing(self._once()) as events:
                    async for event in events:
                        connected = True
                        yield event
                reason = "the stream ended"
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if not connected and not self._failures:
                    raise unreachable(self._url, error) from error
                reason = str(error) or type(error).__name__
            except ServerError as error:
                reason = str(error)
            self._failures += 1
            pause = self._pause()
            yield Reconnect(reason, pause)
            await asyncio.sleep(pause)

    def _pause(self) -> float:
        base = self._retry_ms / 1000 * 2.0 ** min(self._failures - 1, 6)
        return min(base, LONGEST_PAUSE) * random.uniform(0.8, 1.2)

    async def _once(self) -> AsyncGenerator[ServerEvent, None]:
        headers = dict(self._headers)
        if self.last_event_id:
            headers["Last-Event-ID"] = self.last_event_id
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE)
        async with self._session.get(
            self._url, params=list(self._params), headers=headers, timeout=timeout
        ) as response:
            if response.status != 200:
                raise problem_of(response.status, await response.read())
            if response.content_type != "text/event-stream":
                raise Unavailable(f"{self._url} answered {response.content_type}, not an event stream")
            parser = EventParser(self.last_event_id)
            async for chunk in response.content.iter_any():
                for event in parser.feed(chunk):
                    self._failures = 0
                    self.last_event_id = event.last_event_id
                    yield event
                self.last_event_id = parser.last_event_id
                self._retry_ms = self._retry_ms if parser.retry_ms is None else parser.retry_ms
