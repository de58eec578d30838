"""Requests on their short way, from their bytes to their answers; see `gateway.shortcut`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from starlette.responses import Response

from gateway.placement import note_stored, own, settle, settled_at_once
from gateway.problems import problem_response
from gateway.produce import refusal
from shared.errors import CdrsError, InternalError, StaleStream

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from gateway.lines import Chunk, Lines
    from gateway.placement import Pending
    from gateway.shortcut import Fields, Shortcut, Target
    from shared.events import Draft
    from shared.records import Settlement

Headers = list[tuple[bytes, bytes]]

logger = logging.getLogger(__name__)


class Connection(Protocol):
    """Who asks, and takes the answer."""

    @property
    def default_headers(self) -> Headers:
        """Fields of every answer, as the server has them now."""
        ...

    @property
    def must_close(self) -> bool:
        """Whether the connection ends with this answer although the client did not ask for that."""
        ...

    def answer(self, data: bytes, *, close: bool) -> None:
        """Send the answer to the request that was taken; the next one may be taken in this call."""
        ...

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run this as the server runs a request."""
        ...


class Post:
    """A request that is answered by and by."""

    __slots__ = ("_fields", "_shortcut", "_started", "_target", "connection", "pending")

    def __init__(
        self, shortcut: Shortcut, connection: Connection, target: Target, fields: Fields, started: float
    ) -> None:
        self.connection = connection
        self.pending: Pending | None = None
        self._shortcut = shortcut
        self._target = target
        self._fields = fields
        self._started = started

    @property
    def is_last(self) -> bool:
        """Whether the connection ends with the answer."""
        return not self._fields.keep_alive or self.connection.must_close

    def refuse(self, error: CdrsError) -> None:
        """Answer with a problem."""
        self._problem(refusal(self._shortcut.context, error, path=self._target.path))

    def fail(self) -> None:
        """Answer that the fault is here."""
        self._problem(problem_response(InternalError(), instance=self._target.path))

    def _problem(self, response: Response) -> None:
        close = self.is_last
        self._send(serialized(response, self.connection, close=close), close=close)

    def _send(self, answer: bytes, *, close: bool) -> None:
        context = self._shortcut.context
        context.telemetry.ingest_took(context.clock.monotonic() - self._started)
        self.connection.answer(answer, close=close)


class EventPost(Post):
    """A request that brings one event."""

    __slots__ = ("draft",)

    draft: Draft
    """Set before it is submitted."""

    def settled(self) -> None:
        """The dispatcher's word that the event is settled."""
        draft, pending = self.draft, self.pending
        assert pending is not None
        (settlement,) = pending.results
        assert settlement is not None
        if settlement.problem == StaleStream.problem:
            self.connection.spawn(self._settle_anew(draft, pending))
        else:
            note_stored(self._shortcut.context, [draft], [settlement])
            self._answer(draft, own(draft, settlement) if settlement.duplicate else settlement)

    async def _settle_anew(self, draft: Draft, pending: Pending) -> None:
        """Somebody created the stream otherwise at this very moment: the event is routed anew."""
        try:
            (settlement,) = await settle(self._shortcut.context, [draft], pending)
        except CdrsError as error:
            self.refuse(error)
        else:
            self._answer(draft, settlement)

    def _answer(self, draft: Draft, settlement: Settlement) -> None:
        close = self.is_last
        try:
            answer = self._shortcut.receipt(self.connection, draft, settlement, close=close)
        except CdrsError as error:
            self.refuse(error)
        except Exception:
            logger.exception("a produce request failed")
            self.fail()
        else:
            self._send(answer, close=close)


class LinesPost(Post):
    """A request that brings lines of NDJSON, few enough for one chunk."""

    __slots__ = ("_chunk", "_lines")

    def __init__(  # noqa: PLR0917 (the hot path: positional arguments are cheaper)
        self,
        shortcut: Shortcut,
        connection: Connection,
        target: Target,
        fields: Fields,
        started: float,
        lines: Lines,
        chunk: Chunk,
    ) -> None:
        super().__init__(shortcut, connection, target, fields, started)
        self._lines = lines
        self._chunk = chunk

    def settled(self) -> None:
        """The dispatcher's word that all events are settled."""
        context, pending = self._shortcut.context, self.pending
        assert pending is not None
        settlements = settled_at_once(context, self._chunk.drafts, pending)
        if settlements is None:
            self.connection.spawn(self._settle_anew(pending))
        else:
            self.answer(settlements)

    async def _settle_anew(self, pending: Pending) -> None:
        """As `EventPost` does."""
        try:
            settlements = await settle(self._shortcut.context, self._chunk.drafts, pending)
        except CdrsError as error:
            self.refuse(error)
        else:
            self.answer(settlements)

    def answer(self, settlements: Sequence[Settlement]) -> None:
        """Answer all lines, with one settlement for each event."""
        try:
            answers = self._lines.answers(self._chunk, settlements) + self._lines.summary()
        except Exception:
            logger.exception("a produce request failed")
            self.fail()
        else:
            close = self.is_last
            self._send(self._shortcut.lines(self.connection, answers, close=close), close=close)


def serialized(response: Response, connection: Connection, *, close: bool) -> bytes:
    """A response as the server writes it."""
    parts = [status_line(response.status_code)]
    parts += [b"%b: %b\r\n" % field for field in (*connection.default_headers, *response.raw_headers)]
    if close:
        parts.append(b"connection: close\r\n")
    return b"".join([*parts, b"\r\n", bytes(response.body)])


def status_line(status: int) -> bytes:
    """As the server writes it."""
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode("ascii")
