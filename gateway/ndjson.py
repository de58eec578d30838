"""NDJSON: a request answered while it streams, one line of answer for each line, in order.

A short request that is here as a whole is answered as a whole. Else two tasks share it. One cuts the body into lines,
builds events and submits them, a chunk at a time, without waiting for receipts; the other waits for the settlements in
the same order and answers. What is on its way between them is bounded, so a client that does not read its answers is
not read from either.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.bodies import ClientGoneError, Framing, read_part
from gateway.context import GatewayContext
from gateway.lines import CHUNK_LINES, HEADERS, SHORT_BYTES, Chunk, LineCutter, Lines, line_of
from gateway.placement import Pending, settle, submit
from gateway.receipts import LineProblem, ReceiptWriter, refusal_of
from gateway.submission import Chain
from shared.errors import CdrsError, Overloaded, RequestTimeout, Unavailable
from shared.events import Draft, EventBuilder

if TYPE_CHECKING:
    from shared.records import Settlement

MAX_WAITING_LINES = 4096
"""Lines read and not yet answered: with some 250 bytes an answer, 1 MiB of unread answers."""
MAX_WAITING_BYTES = 8 * 1024 * 1024
"""The same in bytes of lines."""
BUSY_PAUSE = 0.02
"""Seconds before a chunk is submitted again that found the queues full."""


class _StalledError(Exception):
    """The client did not read its answers."""


class NdjsonResponse(Response):
    """The answer that reads its request as it goes."""

    def __init__(self, context: GatewayContext, builder: EventBuilder, framing: Framing, *, errors_only: bool) -> None:
        self.status_code = 200
        self.background = None
        self.raw_headers = list(HEADERS)
        self._context = context
        self._framing = framing
        self._lines = Lines(context, builder, ReceiptWriter(context.router.epoch), errors_only=errors_only)
        self._timeout = context.settings.gateway.body_timeout
        self._cutter = LineCutter(context.settings.gateway.max_event_bytes)
        self._chunks: deque[Chunk] = deque()
        self._chain = Chain()
        self._reading: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        """Something is in the queue, or the body has ended."""
        self._left = asyncio.Event()
        """Something was answered."""
        self._waiting_lines = 0
        self._waiting_bytes = 0
        self._answered = 0
        """Lines."""
        self._last = b""
        """The answers to the last lines, sent with the summary behind them."""
        self._has_all = False
        """The last byte of the body has come."""
        self._is_read = False
        self._is_gone = False
        self._cut: CdrsError | None = None
        """Why the body was given up."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        started = self._context.clock.monotonic()
        transport = scope.get("extensions", {}).get("cdrs.transport")
        first: tuple[bytes, bool] | None = None
        length = self._framing.length
        if self._framing.expects_continue or (length is not None and length <= SHORT_BYTES):
            # Asking for the body makes the server say 100; a client may hold it back once it has seen the 200.
            try:
                first = await read_part(receive, timeout=self._timeout)
            except ClientGoneError:
                return
        if first is not None and not first[1] and first[0].count(b"\n") < CHUNK_LINES:
            await self._serve_whole(first[0])
        else:
            await self._serve(receive, first, transport)
        self._context.telemetry.ingest_took(self._context.clock.monotonic() - started)

    async def _serve_whole(self, body: bytes) -> None:
        """Answer a body that is all there and makes one chunk at most."""
        self._has_all = self._is_read = True
        await self._take([*self._cutter.feed(body), *self._cutter.finish()])
        answers = b""
        if self._chunks:
            chunk = self._chunks.popleft()
            answers = self._lines.answers(chunk, await self._settled(chunk))
        answers += self._lines.summary()
        # In chunks as ever, though the length is known: there are clients that read lines and look for the last chunk.
        await self._send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._send({"type": "http.response.body", "body": answers})

    async def _serve(
        self, receive: Receive, first: tuple[bytes, bool] | None, transport: asyncio.Transport | None
    ) -> None:
        await self._send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._send({"type": "http.response.body", "body": b"", "more_body": True})
        is_stalled = False
        try:
            async with asyncio.TaskGroup() as group:
                self._reading = group.create_task(self._read(receive, first), name="ndjson lines")
                group.create_task(self._answer(), name="ndjson answers")
            await self._finish()
        except* _StalledError:
            is_stalled = True
        self._reading = None  # it may hold the end it came to, and that this
        if transport is not None and is_stalled:
            transport.abort()  # a close would wait for the client to take what is buffered
        elif transport is not None and self._cut is not None:
            transport.close()

    # --- reading ---------------------------------------------------------------------------------

    async def _read(self, receive: Receive, first: tuple[bytes, bool] | None) -> None:
        """Read the body to its end, or until it stops coming."""
        try:
            while True:
                body, more = first or await read_part(receive, timeout=self._timeout)
                first = None
                self._has_all = not more
                lines = self._cutter.feed(body)
                if not more:
                    lines += self._cutter.finish()
                for start in range(0, len(lines), CHUNK_LINES):
                    await self._take(lines[start : start + CHUNK_LINES])
                    await asyncio.sleep(0)
                if not more:
                    break
        except ClientGoneError:
            self._is_gone = True
        except RequestTimeout as error:
            self._cut = error
        finally:
            self._is_read = True
            self._arrived.set()

    async def _take(self, lines: Sequence[bytes | None]) -> None:
        chunk = self._lines.build(lines)
        if not chunk.size:
            return
        while self._waiting_lines and (
            self._waiting_lines + chunk.size > MAX_WAITING_LINES
            or self._waiting_bytes + chunk.bytes > MAX_WAITING_BYTES
        ):
            self._left.clear()
            await self._left.wait()
        if not self._waiting_lines:
            self._chain.spreads.clear()
        if chunk.drafts:
            try:
                chunk.pending = await self._submit(chunk.drafts)
            except CdrsError as error:
                self._chain.is_broken |= error.retry
                chunk.items = [refusal_of(error, item.id) if isinstance(item, Draft) else item for item in chunk.items]
        self._waiting_lines += chunk.size
        self._waiting_bytes += chunk.bytes
        self._chunks.append(chunk)
        self._arrived.set()

    async def _submit(self, drafts: Sequence[Draft]) -> Pending:
        """Submit; full queues are waited for, as the client can be made to wait."""
        clock = self._context.clock
        deadline = clock.monotonic() + self._context.settings.gateway.produce_timeout
        while True:
            if self._chain.is_broken:
                raise Unavailable("an earlier event of this request was not stored, and none shall overtake it")
            try:
                return await submit(self._context, drafts, self._chain)
            except Overloaded:
                if clock.monotonic() >= deadline:
                    raise
            await asyncio.sleep(BUSY_PAUSE)

    # --- answering -------------------------------------------------------------------------------

    async def _answer(self) -> None:
        """Answer chunk by chunk until the body has been read and everything is settled."""
        while True:
            while not self._chunks:
                if self._is_read:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            chunk = self._chunks.popleft()
            if self._chain.is_broken and chunk.pending:
                chunk.pending.expire()
            answers = self._lines.answers(chunk, await self._settled(chunk))
            if self._is_read and not self._chunks:
                self._last = answers
            elif answers:
                await self._write(answers)
            self._waiting_lines -= chunk.size
            self._waiting_bytes -= chunk.bytes
            self._answered = chunk.first + len(chunk.items) - 1
            self._left.set()
            if self._chain.is_broken and not self._has_all and not self._is_read:
                self._end_reading()

    async def _settled(self, chunk: Chunk) -> Sequence[Settlement]:
        if chunk.pending is None:
            return ()
        # What has to be routed anew would come behind what was given up before it.
        return await settle(self._context, chunk.drafts, chunk.pending, renew=not self._lines.has_failed)

    def _end_reading(self) -> None:
        """Nothing that is still to come would be stored."""
        assert self._reading is not None
        self._cut = Unavailable("the request ends here: an event was not stored in its turn, none shall overtake it")
        self._reading.cancel()

    async def _write(self, answers: bytes, *, more: bool = True) -> None:
        """Send lines. Raises `_StalledError` where the client takes no byte for too long."""
        if self._is_gone:
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self._send({"type": "http.response.body", "body": answers, "more_body": more})
        except TimeoutError as error:
            raise _StalledError from error

    async def _finish(self) -> None:
        upto = self._answered if self._chain.is_broken else self._lines.tally.lines
        last = self._lines.summary() if self._cut is None else line_of(LineProblem.of(upto + 1, self._cut))
        await self._write(self._last + last, more=False)
