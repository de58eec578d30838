"""What producers send: the head of a produce request read into one `ProduceHead`, and its body read under limits.

Content types are told apart here; what is inside is built by `shared.events`.
"""

from __future__ import annotations

import asyncio
import enum
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from starlette.types import Receive

from shared.envelope import MAX_MEMBERS
from shared.errors import (
    BatchTooLarge,
    DuplicateKey,
    InvalidAttribute,
    InvalidIdempotencyKey,
    InvalidKey,
    Overloaded,
    PayloadTooLarge,
    RequestTimeout,
    ReservedField,
    TooManyFields,
    UnsupportedEncoding,
    UnsupportedMediaType,
)
from shared.validation import MediaType, check_idempotency_key, check_key, parse_media_type

SMALL_BODY = 64 * 1024
"""A body up to here that nobody wants to read is discarded; with a larger one the connection is closed. For one that is
read there is always room (`BodyRoom`)."""
MAX_BODIES_BYTES = 128 * 1024 * 1024
"""Of all bodies of events and batches that are being read, or were and are not answered yet."""

CURL_HINT = 'send JSON, for example: curl --json \'{"hello":"world"}\' http://HOST:PORT/v1/streams/STREAM/events'


class BodyKind(enum.Enum):
    """How a body is to be read."""

    PAYLOAD = enum.auto()
    """``application/json``: a bare payload."""
    BINARY = enum.auto()
    """CloudEvents binary mode: at least one ``ce-*`` header, any content type."""
    STRUCTURED = enum.auto()
    """``application/cloudevents+json``."""
    BATCH = enum.auto()
    """``application/cloudevents-batch+json``."""
    NDJSON = enum.auto()
    """``application/x-ndjson``."""


_KINDS = {
    "application/json": BodyKind.PAYLOAD,
    "application/cloudevents+json": BodyKind.STRUCTURED,
    "application/cloudevents-batch+json": BodyKind.BATCH,
    "application/x-ndjson": BodyKind.NDJSON,
}


@dataclass(frozen=True, slots=True)
class ProduceHead:
    """The header fields of a produce request, checked."""

    kind: BodyKind
    media_type: MediaType | None
    attributes: dict[str, str]
    """CloudEvents attributes from ``ce-*`` headers, decoded."""
    key: str | None
    """Ordering key for events that bring none."""
    idempotency_key: str | None
    framing: Framing


@dataclass(frozen=True, slots=True)
class Framing:
    """What is known of a body before it was read."""

    length: int | None
    """``Content-Length``; None where the body comes in chunks (or there is none)."""
    is_chunked: bool
    expects_continue: bool

    @property
    def may_be_skipped(self) -> bool:
        """Whether the connection can go on although nobody reads the body: it is short and on its way."""
        return not self.is_chunked and not self.expects_continue and (self.length or 0) <= SMALL_BODY


@dataclass(slots=True)
class _Fields:
    media_types: list[bytes] = field(default_factory=list[bytes])
    encodings: list[bytes] = field(default_factory=list[bytes])
    keys: list[bytes] = field(default_factory=list[bytes])
    idempotency_keys: list[bytes] = field(default_factory=list[bytes])
    attributes: dict[str, str] = field(default_factory=dict[str, str])


def read_framing(headers: Iterable[tuple[bytes, bytes]]) -> Framing:
    """Look at the fields that say how the body comes. The server has refused contradictions already."""
    length: int | None = None
    is_chunked = expects_continue = False
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            length = int(value)
        elif name == b"transfer-encoding":
            is_chunked = True
        elif name == b"expect":
            expects_continue = True
    return Framing(length, is_chunked, expects_continue)


def read_head(headers: Iterable[tuple[bytes, bytes]]) -> ProduceHead:
    """Read the header fields of a produce request (names in lower case, as ASGI has them).

    Raises `UnsupportedMediaType`, `UnsupportedEncoding`, `ReservedField`, `DuplicateKey`, `TooManyFields`,
    `InvalidAttribute`, `InvalidKey`, `NotNormalized` or `InvalidIdempotencyKey`.
    """
    headers = list(headers)
    fields = _collect(headers)
    if any(encoding.strip().lower() != b"identity" for encoding in fields.encodings):
        raise UnsupportedEncoding("send the body without Content-Encoding")
    media_type = _media_type(fields.media_types)
    kind = _kind(media_type, is_cloud_event=bool(fields.attributes))
    return ProduceHead(
        kind,
        media_type,
        fields.attributes,
        _ordering_key(fields.keys),
        _idempotency_key(fields.idempotency_keys),
        read_framing(headers),
    )


def _collect(headers: list[tuple[bytes, bytes]]) -> _Fields:
    fields = _Fields()
    for name, value in headers:
        if name == b"content-type":
            fields.media_types.append(value)
        elif name == b"content-encoding":
            fields.encodings.append(value)
        elif name == b"idempotency-key":
            fields.idempotency_keys.append(value)
        elif name.startswith(b"ce-"):
            _add_attribute(fields.attributes, name[3:].decode("latin-1"), value)
        elif name.startswith(b"cdrs-"):
            if name != b"cdrs-key":
                raise ReservedField("header fields that start with 'Cdrs-' belong to the server, but for Cdrs-Key")
            fields.keys.append(value)
    return fields


def _add_attribute(attributes: dict[str, str], name: str, value: bytes) -> None:
    if name in attributes:
        raise DuplicateKey("a ce- header field is sent twice")
    if len(attributes) >= MAX_MEMBERS:
        raise TooManyFields(f"an event has at most {MAX_MEMBERS} members", limit=MAX_MEMBERS)
    text = decode_header(value)
    if text is None:
        raise InvalidAttribute("a ce- header field is UTF-8, percent-encoded where it is not printable ASCII")
    attributes[name] = text


_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)


def decode_header(value: bytes) -> str | None:
    """The text of a ``ce-*`` field: unquoted, percent-decoded once, read as UTF-8 (CloudEvents HTTP binding, 3.1.3.2).

    None where it is not UTF-8.
    """
    value = value.strip(b" \t")
    quoted = _QUOTED.fullmatch(value)
    if quoted is not None:
        value = re.sub(rb"\\(.)", rb"\1", quoted[1], flags=re.DOTALL)
    try:
        return (unquote_to_bytes(value) if b"%" in value else value).decode("utf-8")
    except UnicodeDecodeError:
        return None


def _media_type(values: list[bytes]) -> MediaType | None:
    if not values:
        return None
    if len(values) > 1:
        raise UnsupportedMediaType("there is more than one Content-Type; " + CURL_HINT)
    media_type = parse_media_type(values[0].decode("latin-1"))
    if media_type.charset not in {None, "utf-8"}:
        raise UnsupportedMediaType("the charset is UTF-8; " + CURL_HINT)
    return media_type


def _kind(media_type: MediaType | None, *, is_cloud_event: bool) -> BodyKind:
    essence = media_type.essence if media_type is not None else ""
    kind = _KINDS.get(essence)
    if is_cloud_event and kind in {None, BodyKind.PAYLOAD} and not essence.startswith("application/cloudevents"):
        return BodyKind.BINARY
    if kind is None:
        raise UnsupportedMediaType(
            f"this address takes {', '.join(_KINDS)}, or any type with a ce- header field; {CURL_HINT}"
        )
    return kind


def _ordering_key(values: list[bytes]) -> str | None:
    if not values:
        return None
    text = decode_header(values[0]) if len(values) == 1 else None
    if text is None:
        raise InvalidKey("Cdrs-Key is one field of UTF-8, percent-encoded where it is not printable ASCII")
    return check_key(text)


def _idempotency_key(values: list[bytes]) -> str | None:
    if not values:
        return None
    if len(values) > 1:
        raise InvalidIdempotencyKey("there is more than one Idempotency-Key")
    return check_idempotency_key(values[0].decode("latin-1"))


class ClientGoneError(Exception):
    """The client left, or cut its body short; there is nobody to answer."""


class BodyRoom:
    """Memory of one process for bodies that are being read, and for those that are here until they are answered."""

    def __init__(self, limit: int = MAX_BODIES_BYTES) -> None:
        self._limit = limit
        self.taken = 0
        """Bytes."""

    @contextmanager
    def share(self) -> Generator[Callable[[int], None]]:
        """For one request: call this with the size of each part that has come. It raises `Overloaded` where that is too
        much for all of them together, but never for a `SMALL_BODY`: a few slow ones must not lock all others out."""
        own = 0

        def take(size: int) -> None:
            nonlocal own
            if own + size > SMALL_BODY and self.taken > own and self.taken + size > self._limit:
                raise Overloaded("too many bodies are being read", retry_after=1)
            self.taken += size
            own += size

        try:
            yield take
        finally:
            self.taken -= own


async def read_body(
    receive: Receive,
    framing: Framing,
    *,
    limit: int,
    timeout: float,
    take: Callable[[int], None],
    is_batch: bool = False,
) -> bytes:
    """The whole body; ``take`` is told of each part (`BodyRoom.share`).

    Raises `PayloadTooLarge` (`BatchTooLarge`) before a byte is read where the length says so, else once the limit is
    crossed; `RequestTimeout` after ``timeout`` seconds without a byte; `Overloaded`; `ClientGoneError`.
    """
    too_large = BatchTooLarge if is_batch else PayloadTooLarge
    detail = f"{'a batch' if is_batch else 'an event'} has at most {limit} bytes"
    if framing.length is not None and framing.length > limit:
        raise too_large(detail, limit=limit)
    parts: list[bytes] = []
    size = 0
    while True:
        body, more = await read_part(receive, timeout=timeout)
        size += len(body)
        if size > limit:
            raise too_large(detail, limit=limit)
        take(len(body))
        if not more and not parts:
            return body
        parts.append(body)
        if not more:
            return b"".join(parts)


async def read_part(receive: Receive, *, timeout: float) -> tuple[bytes, bool]:
    """The next bytes of the body, and whether there may be more. Raises `RequestTimeout` or `ClientGoneError`."""
    try:
        async with asyncio.timeout(timeout):
            message = await receive()
    except TimeoutError as error:
        raise RequestTimeout(f"no byte of the body came for {timeout:g} s") from error
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    return message.get("body", b""), message.get("more_body", False)
