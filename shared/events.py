"""From what producers send to what the log keeps: one line of CloudEvents JSON around a payload nobody touched.

The stored value reads ``{"specversion":"1.0","id":…,"source":…,"type":…,<other attributes in the order sent>,
"cdrsstream":…,"datacontenttype":…,"data":<the payload's bytes>}``. Attributes are parsed, checked and written again;
the payload is spliced in verbatim. Formats: CloudEvents 1.0 JSON event format, and bare payloads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import orjson

from shared.envelope import (
    BASE64,
    JSON,
    NONE,
    TEXT,
    binary_data,
    check_of,
    checked_base64,
    data_content_type,
    split_compact,
    split_members,
)
from shared.errors import (
    BatchTooLarge,
    CdrsError,
    EmptyBatch,
    InvalidAttribute,
    InvalidEvent,
    InvalidStream,
    PayloadTooLarge,
    ReservedField,
)
from shared.ids import idempotent_id, uuid7
from shared.jsonbytes import (
    MAX_DEPTH,
    are_json,
    check_depth,
    check_json,
    loads,
    one_line,
    raw_items,
)
from shared.records import NewEvent, Record, identities_of, identity_of
from shared.validation import (
    MediaType,
    check_event_id,
    check_source,
    check_stream,
    check_type,
)

SPEC_VERSION = "1.0"
DEFAULT_TYPE = "event"
SPREAD_UNKNOWN = 0
"""`NewEvent.spread` of a draft whose stream's spread has still to be asked for."""

_REQUIRED = frozenset({"specversion", "id", "source", "type"})
_PLACED = _REQUIRED | {"data", "data_base64", "datacontenttype", "cdrsstream"}
_NO_HEADERS = frozenset({"data", "data_base64", "datacontenttype"})
_DATA = b',"data":'
_DATA_BASE64 = b',"data_base64":'
_QUOTE = 0x22
_SPEC_VERSION = b'"specversion"'
_BACKSLASH = b"\\"
_PAYLOAD_START = b'{"specversion":"1.0","id":"'


_json_loads = orjson.loads
_json_dumps = orjson.dumps
_parse_object: Callable[[bytes], dict[str, Any]] = orjson.loads


class Draft(msgspec.Struct, frozen=True, gc=False):
    """An event that was built, and its id."""

    id: str
    event: NewEvent


def default_source(stream: str) -> str:
    """The source of events that name none."""
    return f"/v1/streams/{stream}"


def attributes_of(event: NewEvent | Record) -> dict[str, Any]:
    """The attributes of a stored event, in order. Parses the envelope only, never the data."""
    if not event.data_at:
        return _parse_object(event.value)
    member = _DATA_BASE64 if event.kind == BASE64 else _DATA
    return _parse_object(event.value[: event.data_at - len(member)] + b"}")


class EventBuilder:
    """Builds the events of one request, whose constants it keeps.

    ``stream``: where they go, or None where each event names its own in ``cdrsstream``.
    ``key``: ordering key of events that bring none. ``idempotency_key``: what ids are made of for events without one.
    ``spread_of``: a stream's spread where it is known at once, else None. ``max_bytes``: largest event as it came in.
    Every method raises a `ClientError` that says what is wrong with the event.
    """

    __slots__ = (
        "_constant",
        "_idempotency_key",
        "_key",
        "_max_bytes",
        "_max_stored",
        "_source",
        "_spread_of",
        "_stream",
        "accepted_ms",
    )

    def __init__(
        self,
        *,
        stream: str | None,
        accepted_ms: int,
        max_bytes: int,
        spread_of: Callable[[str], int | None],
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        self.accepted_ms = accepted_ms
        self._stream = stream
        self._source = default_source(stream) if stream is not None else ""
        self._key = key
        self._idempotency_key = idempotency_key
        self._spread_of = spread_of
        self._max_bytes = max_bytes
        # Below twice the limit, which is what one record of the log may have.
        self._max_stored = max_bytes * 15 // 8
        self._constant = b""

    # --- formats ---------------------------------------------------------------------------------

    def payload(self, body: bytes, index: int = 0) -> Draft:
        """A bare JSON payload; ``index`` is the event's place in the request."""
        if len(body) > self._max_bytes:
            self._check_size(body)
        check_json(body)
        return self._payload(one_line(body), index)

    def structured(self, text: bytes, index: int = 0) -> Draft:
        """A CloudEvent in the JSON event format."""
        self._check_size(text)
        members, raw = split_compact(text) or split_members(text, loads(text, depth=MAX_DEPTH + 1))
        _check_required(members)
        return self._event(members, raw, index)

    def line(self, line: bytes, index: int) -> Draft:
        """One line of NDJSON: a CloudEvent if it is an object with specversion, id, source and type; else a payload."""
        if len(line) > self._max_bytes:
            self._check_size(line)
        if _SPEC_VERSION not in line and _BACKSLASH not in line:
            # With neither the name nor an escape that may stand for it, it is not a CloudEvent.
            check_json(line)
            return self._payload(one_line(line), index)
        found = split_compact(line)
        if found is not None:
            members, raw = found
            if members.keys() >= _REQUIRED:
                if None in members.values():
                    _check_required(members)
                return self._event(members, raw, index)
        else:
            value = loads(line, depth=MAX_DEPTH + 1)
            if value.__class__ is dict and value.keys() >= _REQUIRED:
                _check_required(value)
                return self._event(*split_members(line, value), index)
        if line.count(b"{") + line.count(b"[") > MAX_DEPTH:
            check_depth(line)
        return self._payload(one_line(line), index)

    def payloads(self, lines: Sequence[bytes]) -> list[Draft] | None:
        """The same for many lines at once, where all of them are bare payloads and nothing is unusual about any; None
        otherwise, and then each is for `line`."""
        stream, source, key = self._stream, self._source, self._key
        if stream is None or self._idempotency_key is not None or not lines:
            return None
        text = b"\n".join(lines)
        if _SPEC_VERSION in text or _BACKSLASH in text or b"\r" in text:
            return None
        constant = self._payload_constant(stream)
        ids = uuid7.many(len(lines))
        data_at = len(_PAYLOAD_START) + len(ids[0]) + len(constant)
        longest = max(map(len, lines))
        if longest > self._max_bytes or longest + data_at + 1 > self._max_stored or not are_json(lines, text):
            return None
        accepted_ms, spread = self.accepted_ms, self._spread_of(stream) or SPREAD_UNKNOWN
        return [
            Draft(
                event_id,
                NewEvent(
                    identity,
                    stream,
                    key,
                    b"".join((_PAYLOAD_START, event_id.encode(), constant, line, b"}")),
                    data_at,
                    JSON,
                    accepted_ms,
                    spread,
                    True,
                ),
            )
            for event_id, identity, line in zip(ids, identities_of(stream, source, ids), lines, strict=True)
        ]

    def batch(self, body: bytes, *, max_events: int) -> Iterator[Draft | CdrsError]:
        """A CloudEvents JSON batch: for each item, in order, its event or what is wrong with it.

        Raises, before the first item, what is wrong with the batch as a whole (`split_batch`).
        """
        items = split_batch(body, max_events=max_events)
        for index, item in enumerate(items):
            try:
                yield self.structured(item, index)
            except CdrsError as error:
                yield error

    def binary(self, body: bytes, *, attributes: Mapping[str, str], media_type: MediaType | None) -> Draft:
        """CloudEvents binary mode: attributes from ``ce-*`` headers (decoded), the body is the data.

        What the attributes leave out gets its default. JSON stays JSON, ``text/*`` becomes a JSON string, anything
        else base64.
        """
        self._check_size(body)
        members: dict[str, Any] = {"specversion": SPEC_VERSION, **attributes}
        if not attributes.keys().isdisjoint(_NO_HEADERS):
            raise InvalidAttribute("in binary mode the data is the body and its type the Content-Type header")
        if media_type is not None:
            members["datacontenttype"] = media_type.text
        raw, kind = binary_data(body, media_type)
        return self._build(members, raw, kind, 0)

    # --- parts -----------------------------------------------------------------------------------

    def _check_size(self, text: bytes) -> None:
        if len(text) > self._max_bytes:
            raise PayloadTooLarge(f"an event has at most {self._max_bytes} bytes", limit=self._max_bytes)

    def _event(self, members: dict[str, Any], raw: bytes | None, index: int) -> Draft:
        """A CloudEvent from its parsed members (without data) and the raw data."""
        if raw is None:
            encoded = members.get("data_base64")
            if encoded is None:
                return self._build(members, b"", NONE, index)
            return self._build(members, checked_base64(encoded), BASE64, index)
        if members.get("data_base64") is not None:
            raise InvalidEvent("a CloudEvent has data or data_base64, not both")
        if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
            check_depth(raw)
        if raw[0] == _QUOTE and "datacontenttype" in members:
            declared = members["datacontenttype"]
            if declared is not None and not data_content_type(declared).is_json:
                return self._build(members, raw, TEXT, index)
        return self._build(members, raw, JSON, index)

    def _build(self, members: dict[str, Any], raw: bytes, kind: int, index: int) -> Draft:
        """Check the attributes and splice."""
        stream = self._stream_of(members.get("cdrsstream"))
        event_id, fresh = members.get("id"), False
        if event_id is None:
            event_id, fresh = self._new_id(stream, index)
        else:
            check_event_id(event_id)
        source = members.get("source")
        source = self._source or default_source(stream) if source is None else check_source(source)
        event_type = members.get("type")
        event_type = DEFAULT_TYPE if event_type is None else check_type(event_type)
        head: dict[str, Any] = {"specversion": SPEC_VERSION, "id": event_id, "source": source, "type": event_type}
        for name, value in members.items():
            if name not in _PLACED:
                check = check_of(name)
                if value is not None:
                    head[name] = check(value)
        if members["specversion"] != SPEC_VERSION:
            raise InvalidEvent("specversion is 1.0")
        key = head.get("partitionkey")
        if key is None and self._key is not None:
            key = head["partitionkey"] = self._key
        head["cdrsstream"] = stream
        declared = members.get("datacontenttype")
        if declared is not None:
            head["datacontenttype"] = data_content_type(declared).text
        return self._draft(event_id, source, stream, key, _json_dumps(head), raw, kind, fresh)

    def _payload(self, raw: bytes, index: int) -> Draft:
        """A bare payload: all but the id is the same for the whole request."""
        stream = self._stream
        if stream is None:
            stream = self._stream_of(None)
        event_id, fresh = (uuid7(), True) if self._idempotency_key is None else self._new_id(stream, index)
        constant = self._constant or self._payload_constant(stream)
        written = event_id.encode()
        value = b"".join((_PAYLOAD_START, written, constant, raw, b"}"))
        data_at = len(_PAYLOAD_START) + len(written) + len(constant)
        return self._drafted(event_id, self._source, stream, self._key, value, data_at, JSON, fresh)

    def _payload_constant(self, stream: str) -> bytes:
        """What stands between the id of a bare payload and its data."""
        if not self._constant:
            rest: dict[str, Any] = {"source": self._source, "type": DEFAULT_TYPE}
            if self._key is not None:
                rest["partitionkey"] = self._key
            rest["cdrsstream"] = stream
            self._constant = b'",' + _json_dumps(rest)[1:-1] + _DATA
        return self._constant

    def _draft(  # noqa: PLR0917 (the hot path: positional arguments are cheaper)
        self, event_id: str, source: str, stream: str, key: str | None, text: bytes, raw: bytes, kind: int, fresh: bool
    ) -> Draft:
        """Splice the data into the JSON of the attributes."""
        if kind:
            member = _DATA_BASE64 if kind == BASE64 else _DATA
            data_at = len(text) - 1 + len(member)
            text = b"".join((text[:-1], member, raw, b"}"))
        else:
            data_at = 0
        return self._drafted(event_id, source, stream, key, text, data_at, kind, fresh)

    def _drafted(  # noqa: PLR0917 (as above)
        self,
        event_id: str,
        source: str,
        stream: str,
        key: str | None,
        value: bytes,
        data_at: int,
        kind: int,
        fresh: bool,
    ) -> Draft:
        if kind and len(value) > self._max_stored:
            raise PayloadTooLarge(f"encoded as JSON an event has at most {self._max_stored} bytes")
        event = NewEvent(
            identity_of(stream, source, event_id),
            stream,
            key,
            value,
            data_at,
            kind,
            self.accepted_ms,
            self._spread_of(stream) or SPREAD_UNKNOWN,
            fresh,
        )
        return Draft(event_id, event)

    def _stream_of(self, named: Any) -> str:
        if self._stream is None:
            if not isinstance(named, str):
                raise InvalidStream("each event names its stream in the attribute cdrsstream")
            return check_stream(named, writable=True)
        if named is not None and named != self._stream:
            raise ReservedField("cdrsstream names another stream than the address", attribute="cdrsstream")
        return self._stream

    def _new_id(self, stream: str, index: int) -> tuple[str, bool]:
        if self._idempotency_key is not None:
            return idempotent_id(subject="", stream=stream, key=self._idempotency_key, index=index), False
        return uuid7(), True


def _check_required(members: Mapping[str, Any]) -> None:
    if None in (members.get("specversion"), members.get("id"), members.get("source"), members.get("type")):
        raise InvalidEvent("a CloudEvent has the attributes specversion, id, source and type")


def split_batch(body: bytes, *, max_events: int) -> list[bytes]:
    """The raw items of a JSON array, of which none has been looked into. Raises `MalformedJson`, `TooDeep`,
    `InvalidEvent`, `EmptyBatch` or `BatchTooLarge`."""
    items = raw_items(body)
    if items is None:
        loads(body, depth=MAX_DEPTH + 2)
        raise InvalidEvent("a batch is a JSON array of CloudEvents")
    if not items:
        raise EmptyBatch("the batch has no event in it")
    if len(items) > max_events:
        raise BatchTooLarge(f"a batch has at most {max_events} events", limit=max_events)
    return items
