"""Sending many events as NDJSON: in order, with retries that add nothing.

The lines go out in segments. A segment is one request; it is confirmed by the summary that ends its answer. Where the
connection breaks, or the answer says that a retry helps, its lines go again, bytes and ids unchanged, and nothing newer
before them: what was stored the first time is answered as a duplicate. Each time only the first half of them goes,
until a server that is hard put to it gets through with it; from then on each segment may be twice as large.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import orjson

from services.cli.client import problem_of
from shared.errors import ServerError, Unavailable

SEGMENT_LINES = 16_384
SEGMENT_BYTES = 16 * 1024 * 1024
SEGMENT_SECONDS = 15.0
"""A segment ends after so long, too: what was sent is confirmed, and the silence of a server that has nothing to say
before the end stays well below `ANSWER_TIMEOUT`."""
PIECE_BYTES = 64 * 1024
"""Bytes per chunk of the request body."""
IDLE = 1.0
"""Seconds without a new line after which a segment ends, so that what was sent is confirmed."""
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
GIVE_UP_AFTER = 60.0
"""Seconds of failing attempts at one segment before the command gives up."""
LEFT_INTERVAL = 0.5
"""Seconds between two looks at whether the server has ended its side."""
ANSWER_TIMEOUT = 60.0
"""Seconds without a byte of the answer."""


@dataclass(slots=True)
class Totals:
    """What came of the lines."""

    lines: int = 0
    stored: int = 0
    duplicates: int = 0
    failed: int = 0
    retries: int = 0

    def as_dict(self) -> dict[str, int]:
        """For the JSON summary."""
        return {"lines": self.lines, "stored": self.stored, "duplicates": self.duplicates, "failed": self.failed}


@dataclass(frozen=True, slots=True)
class Piece:
    """Some lines, joined: one chunk of a request body."""

    data: bytes
    numbers: Sequence[int]
    """Per line, its number in the input."""


class Source(Protocol):
    """Where the lines come from."""

    async def next(self) -> Piece | None:
        """The next piece, None at the end. May be cancelled while it waits, without losing anything."""
        ...


def pieces_of(lines: Iterable[tuple[int, bytes]]) -> Iterator[Piece]:
    """Join numbered lines (without their ends) into pieces of about `PIECE_BYTES`."""
    waiting: list[bytes] = []
    numbers: list[int] = []
    size = 0
    for number, line in lines:
        waiting.append(line)
        numbers.append(number)
        size += len(line) + 1
        if size >= PIECE_BYTES:
            yield Piece(b"\n".join([*waiting, b""]), numbers)
            waiting, numbers, size = [], [], 0
    if waiting:
        yield Piece(b"\n".join([*waiting, b""]), numbers)


class LineSource:
    """Lines that are there already: a file, or arguments."""

    def __init__(self, lines: Iterable[tuple[int, bytes]]) -> None:
        self._pieces = pieces_of(lines)

    async def next(self) -> Piece | None:
        await asyncio.sleep(0)  # the answer is read, and the last piece leaves, while this one is being made
        return next(self._pieces, None)


class Unsent:
    """A source that takes pieces back, and whose end or failure comes again whenever it is asked."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._back: deque[Piece] = deque()
        self._is_at_end = False
        self._failure: Exception | None = None

    async def next(self) -> Piece | None:
        """As `Source.next`."""
        if self._back:
            return self._back.popleft()
        if self._failure is not None:
            raise self._failure
        if self._is_at_end:
            return None
        try:
            piece = await self._source.next()
        except Exception as error:
            self._failure = error
            raise
        self._is_at_end = piece is None
        return piece

    def take_back(self, pieces: Sequence[Piece]) -> None:
        """These come next, in this order."""
        self._back.extendleft(reversed(pieces))


class Segment:
    """Lines that travel in one request. Filled while it is sent, kept until it is confirmed."""

    def __init__(self, source: Unsent, first: Piece, most_lines: int) -> None:
        """``most_lines``: it takes no piece more once it has so many."""
        self._source = source
        self._pieces = [first]
        self._most_lines = most_lines
        self._ends = asyncio.get_running_loop().time() + SEGMENT_SECONDS
        self.numbers = list(first.numbers)
        self._bytes = len(first.data)
        self._closed = self._is_full()

    async def body(self) -> AsyncGenerator[bytes]:
        """The request body, from its first byte: what is there already, then what comes."""
        at = 0
        while True:
            while at < len(self._pieces):
                yield self._pieces[at].data
                at += 1
            if not self._closed:
                await self._fill()
            if at == len(self._pieces):
                return

    async def _fill(self) -> None:
        piece: Piece | None = None
        try:
            async with asyncio.timeout(IDLE):
                piece = await self._source.next()
        except Exception:  # noqa: BLE001, S110 -- nothing came in time; or the source failed, and says so again
            pass
        if piece is None:
            self._closed = True
            return
        self._pieces.append(piece)
        self.numbers += piece.numbers
        self._bytes += len(piece.data)
        self._closed = self._is_full()

    def _is_full(self) -> bool:
        is_old = asyncio.get_running_loop().time() >= self._ends
        return is_old or len(self.numbers) >= self._most_lines or self._bytes >= SEGMENT_BYTES

    def cut(self) -> None:
        """Give the second half back to the source, and take nothing more. Nobody may be reading the body."""
        self._closed = True
        kept = (len(self._pieces) + 1) // 2
        self._source.take_back(self._pieces[kept:])
        del self._pieces[kept:]
        self.numbers = [number for piece in self._pieces for number in piece.numbers]


class Sender:
    """Sends segments, one after the other."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        receipts: Callable[[bytes], None] | None = None,
        on_failure: Callable[[int, str], None] = lambda _number, _reason: None,
        on_retry: Callable[[str, float], None] = lambda _reason, _pause: None,
    ) -> None:
        """``url``: an address that takes NDJSON. ``receipts`` gets each receipt line; without it only problems and the
        summary are asked for. ``on_failure`` gets the input's line number and the reason."""
        self._session = session
        self._url = url
        self._receipts = receipts
        self._on_failure = on_failure
        self._on_retry = on_retry
        self._room = SEGMENT_LINES
        """Lines of the next segment, about."""
        self.totals = Totals()

    async def send(self, source: Source) -> None:
        """Everything. Raises `Unavailable` when a segment cannot be settled in time, what the gateway refused it with,
        or what the source failed with once all that came before it is confirmed."""
        unsent = Unsent(source)
        while (first := await unsent.next()) is not None:
            await self._settle_segment(Segment(unsent, first, self._room))
            self._room = min(2 * self._room, SEGMENT_LINES)

    async def _settle_segment(self, segment: Segment) -> None:
        loop = asyncio.get_running_loop()
        give_up: float | None = None
        pause = FIRST_PAUSE
        while True:
            try:
                await self._attempt(segment)
                return
            except (aiohttp.ClientError, TimeoutError, OSError, ServerError) as error:
                reason = str(error) or type(error).__name__
                wait = max(pause * random.uniform(0.8, 1.2), getattr(error, "retry_after", None) or 0.0)
                give_up = give_up or loop.time() + GIVE_UP_AFTER
                if loop.time() + wait > give_up:
                    raise Unavailable(
                        f"given up after {GIVE_UP_AFTER:.0f} s at line {segment.numbers[0]}: {reason}. "
                        "Run the same command again: what is stored already is not stored twice"
                    ) from error
            self.totals.retries += 1
            self._on_retry(reason, wait)
            await asyncio.sleep(wait)
            segment.cut()
            self._room = len(segment.numbers)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _attempt(self, segment: Segment) -> None:
        params = {} if self._receipts else {"receipts": "errors"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=ANSWER_TIMEOUT)
        headers = {"Content-Type": "application/x-ndjson"}
        async with AsyncExitStack() as stack:
            # The head comes at once. aiohttp would wait for it without end while a server takes no more of the body.
            async with asyncio.timeout(ANSWER_TIMEOUT):
                response = await stack.enter_async_context(
                    self._session.post(self._url, params=params, data=segment.body(), headers=headers, timeout=timeout)
                )
            answer = _Answer()
            watch = asyncio.create_task(_abort_when_left(response), name="watch for the server's leaving")
            try:
                if response.status != 200:
                    error = problem_of(response.status, await response.read())
                    error.retry_after = _seconds(response.headers.get("Retry-After"))
                    raise error
                async for line in response.content:
                    answer.take(line)
            finally:
                watch.cancel()
                if answer.summary is None:
                    # Else leaving waits until the rest of the body is sent, which nobody may be reading.
                    response.close()
        self._settle(segment, answer)

    def _settle(self, segment: Segment, answer: _Answer) -> None:
        if answer.summary is None:
            raise Unavailable("the answer was cut off")
        for line, problem in answer.failures:
            number = segment.numbers[line - 1] if 0 < line <= len(segment.numbers) else line
            self._on_failure(number, str(problem.get("detail") or problem.get("title")))
        if self._receipts is not None:
            for receipt in answer.receipts:
                self._receipts(receipt)
        totals = self.totals
        totals.lines += len(segment.numbers)
        totals.stored += int(answer.summary["stored"])
        totals.duplicates += int(answer.summary["duplicates"])
        totals.failed += int(answer.summary["failed"])


async def _abort_when_left(response: aiohttp.ClientResponse) -> None:
    """Two ways in which a server leaves that whoever reads the answer is not told of. One ends its side while much of
    the body is still to be sent, and reads no more: asyncio closes the connection once the rest is written, which it
    never is. One leaves just before the end of the body is written: aiohttp 3.14 drops the connection, its timeout, and
    the reader."""
    is_ending = False
    while (connection := response.connection) is not None:
        transport = connection.transport
        if transport is None:
            response.content.set_exception(aiohttp.ClientConnectionError("the connection was lost"))
            return
        if is_ending:
            transport.abort()
        is_ending = transport.is_closing()
        await asyncio.sleep(LEFT_INTERVAL)  # whatever came before is read first


class _Answer:
    """The lines of one answer, told apart."""

    def __init__(self) -> None:
        self.summary: dict[str, Any] | None = None
        self.failures: list[tuple[int, dict[str, Any]]] = []
        self.receipts: list[bytes] = []

    def take(self, line: bytes) -> None:
        """Raises `Unavailable` where a retry can help that line: all of them go again."""
        if not line.endswith(b"\n"):
            return
        message: dict[str, Any] = orjson.loads(line)
        if "summary" in message:
            self.summary = message["summary"]
        elif "problem" in message:
            problem = message["problem"]
            if int(problem.get("status", 0)) >= 500:
                raise Unavailable(str(problem.get("detail") or problem.get("title")))
            self.failures.append((int(message["line"]), problem))
        else:
            self.receipts.append(line.rstrip(b"\n"))


def _seconds(text: str | None) -> float | None:
    return min(float(text), 30.0) if text and text.isascii() and text.isdigit() else None
