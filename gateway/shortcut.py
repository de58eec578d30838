"""The short way of a plain POST: from the bytes of a whole request to its receipt, beneath ASGI.

What is served here is what producers send all day: ``POST /v1/streams/{stream}/events`` or ``/v1/events`` with one
event, or with a few lines of NDJSON (those also with ``receipts=errors``), and a Content-Length, all of it here.
Anything else, and whatever is not known at once, is declined before anything was done, and goes through the
application. Validation, errors, receipts and counters are the application's own functions.

A batch is the application's, but where the gateway is full already it is refused here, by its head alone.

Header fields are never read by code of our own: what the parser and the application made of a block of fields is kept
under its very bytes, so a block is read once, however often it comes.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gateway.bodies import SMALL_BODY, BodyKind, ProduceHead, read_head
from gateway.lines import CHUNK_LINES, HEADERS, SHORT_BYTES, LineCutter, Lines
from gateway.placement import submit_known, submit_one
from gateway.produce import build_one, check_room, count_one, location_of, refusal
from gateway.receipts import ReceiptWriter
from gateway.short_posts import EventPost, LinesPost, serialized, status_line
from gateway.submission import Chain
from shared.errors import CdrsError, Overloaded
from shared.events import SPREAD_UNKNOWN, Draft, EventBuilder
from shared.validation import check_stream

if TYPE_CHECKING:
    from gateway.context import GatewayContext
    from gateway.short_posts import Connection, Headers, Post
    from shared.records import Settlement

MAX_FIELDS = 1024
"""Longest block of header fields that is kept, in bytes."""
KEPT = 2048
"""Blocks of fields, and request lines, that are kept."""
MAX_BODY = 128 * 1024
"""Longest body that is taken here, in bytes: it has to arrive in one piece anyway."""

_LINE = re.compile(rb"POST (/v1/(?:streams/([A-Za-z0-9_.-]{1,200})/)?events)(\?receipts=errors)? HTTP/1\.1")
_LENGTH = re.compile(rb"(?:^|\r\n)content-length:[ \t]*([0-9]{1,8})[ \t]*(?:\r\n|$)", re.IGNORECASE)
_BARE = frozenset({BodyKind.PAYLOAD, BodyKind.NDJSON})
_SINGULAR = (b"ce-", b"idempotency-key", b"cdrs-key")
"""Fields that differ from request to request: to keep them would only push out others."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


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


def _around(block: bytes, size: int) -> bytes | None:
    """A block, in which the parser has found this length, without it; None where that is not what stands there."""
    length = content_length(block)
    is_one = length is not None and length.value == size and content_length(length.around) is None
    return length.around if length is not None and is_one else None


@dataclass(frozen=True, slots=True)
class Target:
    """What a request line says."""

    path: str
    stream: str | None
    """None: each event names its own."""
    errors_only: bool
    """Such requests are taken where they bring lines."""
    builder: EventBuilder
    """For payloads that bring neither key nor idempotency key."""


@dataclass(frozen=True, slots=True)
class Fields:
    """What a block of header fields says."""

    head: ProduceHead
    """Its length may be that of another block, which differs by that alone."""
    length: int
    keep_alive: bool
    is_bare: bool
    """Payloads without key and idempotency key."""
    is_lines: bool


class Shortcut:
    """The short way through one gateway; shared by its connections."""

    def __init__(self, context: GatewayContext) -> None:
        self.context = context
        self._targets: dict[bytes, Target] = {}
        self._max_body = min(context.settings.gateway.max_event_bytes, MAX_BODY)
        self._fields: dict[bytes, Fields] = {}
        self._alike: dict[bytes, Fields] = {}
        """Blocks of fields without their length."""
        self._batches: dict[bytes, bool] = {}
        """Blocks of fields of batches, without their length → whether the connection is kept."""
        self._seen: set[int] = set()
        """Hashes of blocks that came once."""
        self._receipts: ReceiptWriter | None = None
        self._epoch: object = None
        self._head_of: Headers = []
        self._starts: dict[int, bytes] = {}
        """Status → the start of an answer with a receipt, up to its length; renewed with the server's fields."""
        self._lines_start = b""
        """The start of an answer to lines."""

    # --- what a request says ---------------------------------------------------------------------

    def target(self, line: bytes) -> Target | None:
        """What a request line asks for; None where it is not for us."""
        target = self._targets.get(line)
        if target is None:
            match = _LINE.fullmatch(line)
            if match is None:
                return None
            stream = None if match[2] is None else match[2].decode("ascii")
            try:
                if stream is not None:
                    check_stream(stream, writable=True)
            except CdrsError:
                return None
            target = Target(match[1].decode("ascii"), stream, match[3] is not None, self._builder(stream, None))
            _keep(self._targets, line, target)
        return target

    def fields(self, block: bytes) -> Fields | None:
        """What a block of fields says, where it has come before, or one that differs from it by the length alone."""
        return self._fields.get(block) or self._like(block)

    def _like(self, block: bytes) -> Fields | None:
        length = content_length(block)
        known = None if length is None else self._alike.get(length.around)
        if known is None or length is None or length.value > self._most(known.head):
            return None
        fields = Fields(known.head, length.value, known.keep_alive, known.is_bare, known.is_lines)
        self._learn(self._fields, block, fields)
        return fields

    def _most(self, head: ProduceHead) -> int:
        """Longest body that is taken here."""
        return SHORT_BYTES if head.kind is BodyKind.NDJSON else self._max_body

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
        if framing.length is None or framing.is_chunked or framing.expects_continue:
            return None
        if is_batch:
            if is_kept:
                self._learn_batch(block, framing.length, keep_alive=keep_alive)
            return None
        if framing.length > self._most(head):
            return None
        is_bare = head.kind in _BARE and head.key is None and head.idempotency_key is None
        fields = Fields(head, framing.length, keep_alive, is_bare, head.kind is BodyKind.NDJSON)
        if is_kept:
            self._learn(self._fields, block, fields)
            around = _around(block, framing.length)
            if around is not None and around not in self._alike:
                self._learn(self._alike, around, fields)
        return fields

    def _learn(self, kept: dict[bytes, Fields], block: bytes, fields: Fields) -> None:
        mark = hash(block)
        if mark in self._seen:
            self._seen.discard(mark)
            _keep(kept, block, fields)
        else:
            if len(self._seen) >= KEPT:
                self._seen.clear()
            self._seen.add(mark)

    def _learn_batch(self, block: bytes, size: int, *, keep_alive: bool) -> None:
        around = _around(block, size)
        if around is not None and around not in self._batches:
            _keep(self._batches, around, keep_alive)

    def _builder(self, stream: str | None, head: ProduceHead | None) -> EventBuilder:
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
        stream = target.stream
        if stream is not None and context.catalog.cached_spread(stream) is None:
            return None
        if target.errors_only and not fields.is_lines:
            return None
        builder = target.builder if fields.is_bare else self._builder(stream, fields.head)
        if fields.is_lines:
            return self._take_lines(connection, target, fields, builder, body)
        post = EventPost(self, connection, target, fields, context.clock.monotonic())
        builder.accepted_ms = context.clock.unix_ms()
        try:
            context.dispatcher.check()
            draft = builder.payload(body) if fields.is_bare else build_one(builder, fields.head, body)
            post.draft = draft
            if draft.event.spread == SPREAD_UNKNOWN:  # the catalog does not know the stream, or no more
                return None
            post.pending = submit_one(context, draft, post.settled)
        except CdrsError as error:
            post.refuse(error)
        except Exception:
            logger.exception("a produce request failed")
            post.fail()
        return post

    def _take_lines(
        self, connection: Connection, target: Target, fields: Fields, builder: EventBuilder, body: bytes
    ) -> LinesPost | None:
        """Where the queues are full, the application holds up the client's reading; what fails here, fails there."""
        context = self.context
        if body.count(b"\n") >= CHUNK_LINES:
            return None
        started = context.clock.monotonic()
        lines = Lines(context, builder, self._writer(), errors_only=target.errors_only)
        cutter = LineCutter(context.settings.gateway.max_event_bytes)
        try:
            context.dispatcher.check()
            chunk = lines.build([*cutter.feed(body), *cutter.finish()])
            post = LinesPost(self, connection, target, fields, started, lines, chunk)
            if chunk.drafts:
                post.pending = submit_known(context, chunk.drafts, Chain(), post.settled)
                return None if post.pending is None else post
        except Exception:  # noqa: BLE001 - nothing was done, and the application will tell
            return None
        post.answer(())
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
            connection.answer(serialized(response, connection, close=close), close=close)
            return True
        return False

    def receipt(self, connection: Connection, draft: Draft, settlement: Settlement, *, close: bool) -> bytes:
        """The answer to a request whose event is stored, as `produce.answer_one` makes it. Raises the error that the
        event was settled with."""
        count_one(self.context, draft, settlement)
        default = connection.default_headers
        if default is not self._head_of:
            self._write_starts(default)
        body = self._writer().encoded(draft.id, draft.event.stream, settlement)
        return b"%b%d\r\ncontent-type: application/json\r\nlocation: %b%b%b" % (
            self._starts[200 if settlement.duplicate else 201],
            len(body),
            location_of(draft).encode("ascii"),
            b"\r\nconnection: close\r\n\r\n" if close else b"\r\n\r\n",
            body,
        )

    def lines(self, connection: Connection, answers: bytes, *, close: bool) -> bytes:
        """The answer to lines, as `gateway.ndjson` makes it: in one chunk."""
        default = connection.default_headers
        if default is not self._head_of:
            self._write_starts(default)
        return b"%b%btransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
            self._lines_start,
            b"connection: close\r\n" if close else b"",
            len(answers),
            answers,
        )

    def _write_starts(self, default: Headers) -> None:
        self._head_of = default
        end = _fields_text(default) + b"cache-control: no-store\r\ncontent-length: "
        self._starts = {status: status_line(status) + end for status in (200, 201)}
        self._lines_start = status_line(200) + _fields_text([*default, *HEADERS])

    def _writer(self) -> ReceiptWriter:
        epoch = self.context.router.epoch
        if self._receipts is None or epoch is not self._epoch:
            self._epoch = epoch
            self._receipts = ReceiptWriter(epoch)
        return self._receipts


def _fields_text(fields: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def _keep(kept: dict[bytes, T], key: bytes, value: T) -> None:
    """Keep something, and forget what was kept first where it is too much."""
    if len(kept) >= KEPT:
        del kept[next(iter(kept))]
    kept[key] = value
