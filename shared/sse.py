"""Framing of server-sent events (WHATWG HTML, section 9.2). Pure functions from values to bytes; no I/O.

Every block ends with a blank line. ``id:`` stands on data blocks and cursor blocks only, and is always a cursor, so
that whatever a browser remembers can be resumed from.
"""

from __future__ import annotations

import binascii
from typing import Any, NamedTuple

import orjson

from shared.events import attributes_of
from shared.records import DataKind, Record

CONTENT_TYPE = "text/event-stream"
UNNAMED_TYPES = frozenset({"error", "open", "message"})
"""Types that would fire the page's own ``onerror`` and the like: sent without ``event:``."""


class Shape(NamedTuple):
    """How a subscriber wants its events; all with the same shape share their frames."""

    data_only: bool = False
    """``format=data``: the payload alone instead of the whole CloudEvent."""
    named: bool = False
    """``event:`` is the CloudEvents type."""
    stamps: bool = False
    """Position and hop times stand in the event."""


DEFAULT_SHAPE = Shape()
"""What nearly everybody asks for; compared by identity where every nanosecond counts."""


def event_block(record: Record, cursor: bytes, shape: Shape, *, stamps: bytes = b"") -> bytes:
    """The block of one event. ``cursor`` is the id's text; ``stamps`` is what `stamp_members` made."""
    name = b""
    if shape.named:
        event_type = attributes_of(record)["type"]
        if event_type not in UNNAMED_TYPES:
            name = b"event: " + event_type.encode() + b"\n"
    if shape.data_only:
        return _payload_block(record, cursor, name)
    value = record.value
    if stamps:
        value = b"{" + stamps + value[1:]
    return b"id: " + cursor + b"\n" + name + b"data: " + value + b"\n\n"


def _payload_block(record: Record, cursor: bytes, name: bytes) -> bytes:
    head = b"id: " + cursor + b"\n"
    raw = record.value[record.data_at : -1] if record.kind != DataKind.NONE else b""
    if record.kind == DataKind.TEXT:
        text: str = orjson.loads(raw)
        if "\r" not in text:
            return head + name + _data_lines(text.encode()) + b"\n"
        return head + b"event: cdrs.base64\ndata: " + _base64(text.encode()) + b"\n\n"
    if record.kind == DataKind.BASE64:
        return head + b"event: cdrs.base64\ndata: " + raw.strip(b'"') + b"\n\n"
    return head + name + b"data: " + raw + b"\n\n"


def _base64(data: bytes) -> bytes:
    return binascii.b2a_base64(data, newline=False)


def _data_lines(text: bytes) -> bytes:
    return b"".join(b"data: " + line + b"\n" for line in text.split(b"\n"))


def stamp_members(record: Record, *, epoch: str, accepted: str, appended: str, dispatched: str) -> bytes:
    """The extra members of ``stamps=true``, as the inside of a JSON object with a comma behind."""
    members = {
        "cdrsposition": f"{epoch}/{record.partition}/{record.offset}",
        "cdrsaccepted": accepted,
        "cdrsappended": appended,
        "cdrsdispatched": dispatched,
    }
    return orjson.dumps(members)[1:-1] + b","


def cursor_block(cursor: bytes) -> bytes:
    """Moves the browser's last id without an event reaching the page.

    The empty ``data:`` line makes every engine dispatch it (Gecko and WebKit ignore the id of a block without data),
    and the name keeps it from ``onmessage``.
    """
    return b"event: cdrs.cursor\nid: " + cursor + b"\ndata:\n\n"


def control_block(name: str, detail: dict[str, Any] | None = None) -> bytes:
    """A ``cdrs.*`` event without id."""
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(detail or {}) + b"\n\n"


def retry_block(milliseconds: int) -> bytes:
    """The reconnect delay a native EventSource keeps from now on."""
    return b"retry: %d\n\n" % milliseconds


def bye_block(reason: str, retry_ms: int) -> bytes:
    """The farewell before a clean end: why, and when to come back."""
    return control_block("cdrs.bye", {"reason": reason, "retry_ms": retry_ms}) + retry_block(retry_ms)
