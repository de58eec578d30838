"""The short way of a plain POST: from the bytes of a whole request to its receipt, beneath ASGI.

What is served here is what producers send all day: ``POST /v1/streams/{stream}/events`` with one event and a
Content-Length, all of it here. Anything else, and whatever is not known at once, is declined before anything was done,
and goes through the application. Validation, errors, receipts and counters are the application's own functions.

A batch is the application's, but where the gateway is full already it is refused here, by its head alone.

Header fields are never read by code of our own: what the parser and the application made of a block of fields is kept
under its very bytes, so a block is read once, however often it comes.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from starlette.responses import Response

from gateway.bodies import SMALL_BODY, BodyKind, ProduceHead, read_head
from gateway.placement import note_stored, own, settle, submit_one
from gateway.problems import problem_response
from gateway.produce import build_one, check_room, location_of, receipt_one, refusal
from gateway.receipts import ReceiptWriter, encoder
from shared.errors import CdrsError, InternalError, Overloaded, StaleStream
from shared.events import SPREAD_UNKNOWN, Draft, EventBuilder
from shared.validation import check_stream

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from gateway.context import GatewayContext
    from gateway.placement import Pending
    from shared.records import Settlement

MAX_FIELDS = 1024
"""Longest block of header fields that is kept, in bytes."""
KEPT = 2048
"""Blocks of fields, and request lines, that are kept."""
MAX_BODY = 128 * 1024
"""Longest body that is taken here, in bytes: it has to arrive in one piece anyway."""

_LINE = re.compile(rb"POST (/v1/streams/([A-Za-z0-9_.-]{1,200})/events) HTTP/1\.1")
_LENGTH = re.compile(rb"(?:^|\r\n)content-length:[ \t]*([0-9]{1,8})[ \t]*(?:\r\n|$)", re.IGNORECASE)
_KINDS = frozenset({BodyKind.PAYLOAD, BodyKind.BINARY, BodyKind.STRUCTURED})
_SINGULAR = (b"ce-", b"idempotency-key", b"cdrs-key")
"""Fields that differ from request to request: to keep them would only push out others."""

Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")

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


class Length(NamedTuple):
    """The length of a body, as it stands in a block of header fields."""

    value: int
    around: bytes
    """The block without it."""


def content_length(block: bytes) -> Length | None:
    """What looks like the length in a block of fields. It is one if the parser has found so in the same block around
    it."""
    found = _LENGTH.search(block)
    return None if found is None else Length(int(found[1]), block[: found.start(1)] + block[found.end(1) :])


@dataclass(frozen=True, slots=True)
class Target:
    """What a request line says."""

    path: str
    stream: str
    builder: EventBuilder
    """For payloads that bring neither key nor idempotency key."""


@dataclass(frozen=True, slots=True)
class Fields:
    """What a block of header fields says."""

    head: ProduceHead
    length: int
    keep_alive: bool
    is_bare: bool
    """A payload without key and idempotency key."""


class Shortcut:
    """The short way through one gateway; shared by its connections."""

    def __init__(self, context: GatewayContext) -> None:
        self.context = context
        self._targets: dict[bytes, Target] = {}
        self._fields: dict[bytes, Fields] = {}
        self._declined: dict[bytes, None] = {}
        """Blocks of fields that are never for us, such as those of NDJSON."""
        self._batches: dict[bytes, bool] = {}
        """Blocks of fields of batches, without their length → whether the connection is kept."""
        self._seen: set[int] = set()
        """Hashes of blocks that came once."""
        self._receipts: ReceiptWriter | None = None
        self._epoch: object = None
        self._head_of: Headers = []
        self._starts: dict[int, bytes] = {}
        """Status → the start of an answer with a receipt, up to its length; renewed with the server's fields."""

    # --- what a request says ---------------------------------------------------------------------

    def target(self, line: bytes) -> Target | None:
        """What a request line asks for; None where it is not for us."""
        target = self._targets.get(line)
        if target is None:
            match = _LINE.fullmatch(line)
            if match is None:
                return None
            stream = match[2].decode("ascii")
            try:
                check_stream(stream, writable=True)
            except CdrsError:
                return None
            target = Target(match[1].decode("ascii"), stream, self._builder(stream, None))
            _keep(self._targets, line, target)
        return target

    def fields(self, block: bytes) -> Fields | None:
        """What a block of fields says, where it has come before."""
        return self._fields.get(block)

    def declines(self, block: bytes) -> bool:
        """Whether a block of fields has come before and is nothing for us."""
        return block in self._declined

    def read(self, block: bytes, headers: Headers, *, keep_alive: bool) -> Fields | None:
        """What a block of fields says that the parser has just read as these (names in lower case); None where it is
        nothing for us. It is kept when it comes for the second time."""
        if block.count(b"\r\n") != len(headers) - 1 or block.count(b"\n") != len(headers) - 1:
            return None  # not line by line what the parser saw
        if any(name in {b"upgrade", b"origin"} for name, _ in headers):
            return None
        try:
            head = read_head(headers)
        except CdrsError:
            return None
        framing = head.framing
        is_kept = len(block) <= MAX_FIELDS and not any(name.startswith(_SINGULAR) for name, _ in headers)
        is_batch = head.kind is BodyKind.BATCH
        if head.kind not in _KINDS and not is_batch:
            if is_kept:
                _keep(self._declined, block, None)
            return None
        if framing.length is None or framing.is_chunked or framing.expects_continue:
            return None
        if is_batch:
            if is_kept:
                self._learn_batch(block, framing.length, keep_alive=keep_alive)
            return None
        if framing.length > min(self.context.settings.gateway.max_event_bytes, MAX_BODY):
            return None
        is_bare = head.kind is BodyKind.PAYLOAD and head.key is None and head.idempotency_key is None
        fields = Fields(head, framing.length, keep_alive, is_bare)
        if is_kept:
            self._learn(block, fields)
        return fields

    def _learn(self, block: bytes, fields: Fields) -> None:
        mark = hash(block)
        if mark in self._seen:
            self._seen.discard(mark)
            _keep(self._fields, block, fields)
        else:
            if len(self._seen) >= KEPT:
                self._seen.clear()
            self._seen.add(mark)

    def _learn_batch(self, block: bytes, size: int, *, keep_alive: bool) -> None:
        length = content_length(block)
        is_one = length is not None and length.value == size and content_length(length.around) is None
        if length is not None and is_one and length.around not in self._batches:
            _keep(self._batches, length.around, keep_alive)

    def _builder(self, stream: str, head: ProduceHead | None) -> EventBuilder:
        return EventBuilder(
            stream=stream,
            accepted_ms=0,
            max_bytes=self.context.settings.gateway.max_event_bytes,
            spread_of=self._spread_of,
            key=head.key if head is not None else None,
            idempotency_key=head.idempotency_key if head is not None else None,
        )

    def _spread_of(self, stream: str) -> int | None:
        return self.context.catalog.cached_spread(stream)

    # --- serving ---------------------------------------------------------------------------------

    def take(self, connection: Connection, target: Target, fields: Fields, body: bytes) -> Post | None:
        """Take a request, and answer it by and by; None where the application has to."""
        context = self.context
        if context.catalog.cached_spread(target.stream) is None:
            return None
        post = Post(self, connection, target, fields, context.clock.monotonic())
        builder = target.builder if fields.is_bare else self._builder(target.stream, fields.head)
        builder.accepted_ms = context.clock.unix_ms()
        try:
            context.dispatcher.check()
            draft = post.draft = build_one(builder, fields.head, body)
            if draft.event.spread == SPREAD_UNKNOWN:  # what the catalog knew has run out at this very moment
                return None
            post.pending = submit_one(context, draft, post.settled)
        except CdrsError as error:
            post.refuse(error)
        except Exception:
            logger.exception("a produce request failed")
            post.fail()
        return post

    def refuse_batch(self, connection: Connection, target: Target, length: Length) -> bool:
        """Refuse a batch of which nothing but the head was looked at, where it would wait too long; False, and nothing
        was done, where it would not, or the application has to see."""
        keep_alive = self._batches.get(length.around)
        if keep_alive is None or length.value > SMALL_BODY:
            return False
        try:
            check_room(self.context)
        except Overloaded as error:
            response = refusal(self.context, error, path=target.path)
            close = not keep_alive or connection.must_close
            connection.answer(_serialized(response, connection, close=close), close=close)
            return True
        return False

    def receipt(self, post: Post, draft: Draft, settlement: Settlement) -> bytes:
        """The answer to a request whose event is stored, as `produce.answer_one` makes it. Raises the error that the
        event was settled with."""
        context = self.context
        receipts = self._writer()
        receipt = receipt_one(receipts, draft, settlement, context)
        connection = post.connection
        default = connection.default_headers
        if default is not self._head_of:
            self._head_of = default
            fields = b"".join([b"%b: %b\r\n" % field for field in default])
            end = fields + b"cache-control: no-store\r\ncontent-length: "
            self._starts = {status: _status_line(status) + end for status in (200, 201)}
        body = encoder.encode(receipt)
        return b"%b%d\r\ncontent-type: application/json\r\nlocation: %b%b%b" % (
            self._starts[200 if receipt.duplicate else 201],
            len(body),
            location_of(draft).encode("ascii"),
            b"\r\nconnection: close\r\n\r\n" if post.is_last else b"\r\n\r\n",
            body,
        )

    def _writer(self) -> ReceiptWriter:
        epoch = self.context.router.epoch
        if self._receipts is None or epoch is not self._epoch:
            self._epoch = epoch
            self._receipts = ReceiptWriter(epoch)
        return self._receipts


class Post:
    """A request on its short way."""

    __slots__ = ("_fields", "_shortcut", "_started", "_target", "connection", "draft", "pending")

    def __init__(
        self, shortcut: Shortcut, connection: Connection, target: Target, fields: Fields, started: float
    ) -> None:
        self.connection = connection
        self.draft: Draft | None = None
        self.pending: Pending | None = None
        self._shortcut = shortcut
        self._target = target
        self._fields = fields
        self._started = started

    @property
    def is_last(self) -> bool:
        """Whether the connection ends with the answer."""
        return not self._fields.keep_alive or self.connection.must_close

    def settled(self) -> None:
        """The dispatcher's word that the event is settled."""
        draft, pending = self.draft, self.pending
        assert draft is not None
        assert pending is not None
        (settlement,) = pending.results
        assert settlement is not None
        if settlement.problem == StaleStream.problem:
            self.connection.spawn(self._settle_anew(draft, pending))
        else:
            note_stored(self._shortcut.context, [draft], [settlement])
            self._answer(draft, own(draft, settlement))

    async def _settle_anew(self, draft: Draft, pending: Pending) -> None:
        """Somebody created the stream otherwise at this very moment: the event is routed anew."""
        try:
            (settlement,) = await settle(self._shortcut.context, [draft], pending)
        except CdrsError as error:
            self.refuse(error)
        else:
            self._answer(draft, settlement)

    def _answer(self, draft: Draft, settlement: Settlement) -> None:
        try:
            answer = self._shortcut.receipt(self, draft, settlement)
        except CdrsError as error:
            self.refuse(error)
        except Exception:
            logger.exception("a produce request failed")
            self.fail()
        else:
            self._send(answer)

    def refuse(self, error: CdrsError) -> None:
        """Answer with a problem."""
        self._problem(refusal(self._shortcut.context, error, path=self._target.path))

    def fail(self) -> None:
        """Answer that the fault is here."""
        self._problem(problem_response(InternalError(), instance=self._target.path))

    def _problem(self, response: Response) -> None:
        self._send(_serialized(response, self.connection, close=self.is_last))

    def _send(self, answer: bytes) -> None:
        context = self._shortcut.context
        context.telemetry.ingest_took(context.clock.monotonic() - self._started)
        self.connection.answer(answer, close=self.is_last)


def _serialized(response: Response, connection: Connection, *, close: bool) -> bytes:
    """A response as the server writes it."""
    parts = [_status_line(response.status_code)]
    parts += [b"%b: %b\r\n" % field for field in (*connection.default_headers, *response.raw_headers)]
    if close:
        parts.append(b"connection: close\r\n")
    return b"".join([*parts, b"\r\n", bytes(response.body)])


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode("ascii")


def _keep(kept: dict[bytes, T], key: bytes, value: T) -> None:
    """Keep something, and forget what was kept first where it is too much."""
    if len(kept) >= KEPT:
        del kept[next(iter(kept))]
    kept[key] = value
