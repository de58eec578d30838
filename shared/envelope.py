"""The envelope of a CloudEvent in JSON: cutting it off its data, and the checks of its members.

For `shared.events`, which puts an event together again.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import orjson

from shared.errors import (
    InvalidAttribute,
    InvalidEvent,
    ReservedField,
    TooManyFields,
    UnsupportedMediaType,
)
from shared.jsonbytes import WHITE_SPACE, check_json, check_unique_members, is_json, one_line, raw_members
from shared.records import DataKind
from shared.validation import (
    SERVER_PREFIX,
    MediaType,
    check_attribute,
    check_attribute_name,
    check_key,
    check_source,
    check_time,
    parse_media_type,
)

MAX_MEMBERS = 64
"""Most members of a CloudEvent's envelope."""

# Members of an IntEnum cost a call wherever they are compared or turned into a plain number.
NONE, JSON, TEXT, BASE64 = (int(kind) for kind in DataKind)

_COMMA = 0x2C
_BACKSLASH = 0x5C
_BRACE = 0x7D


def split_compact(text: bytes) -> tuple[dict[str, Any], bytes] | None:
    """Split an object whose last member is ``data``, without parsing anything twice; None where it is not that easy.

    If ``{<head>}`` is an object and the rest is one JSON value, then the whole is an object that ends with that value.
    """
    at = text.find(b'"data":')
    if at <= 0 or text[-1] != _BRACE:
        return None
    head = text[:at] if text[at - 1] == _COMMA else text[:at].rstrip(WHITE_SPACE)
    if not head.endswith(b","):
        return None
    raw = text[at + 7 : -1]
    try:
        members = orjson.loads(head[:-1] + b"}")
    except orjson.JSONDecodeError:
        return None
    if not members or not is_json(raw):  # without members the comma would stand alone
        return None
    strings = len(members)
    for value in members.values():
        if value.__class__ is str:
            strings += 1
    # See `check_unique_members`: escapes, nested members or a second naming make the count differ.
    if _BACKSLASH in head or head.count(b'"') != 2 * strings or "data" in members or len(members) >= MAX_MEMBERS:
        return None
    return members, one_line(raw)


def split_members(text: bytes, value: Any) -> tuple[dict[str, Any], bytes | None]:
    """Split any valid JSON that should be an event into members and raw data."""
    if not isinstance(value, dict):
        raise InvalidEvent("a CloudEvent is a JSON object")
    members: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
    if len(members) > MAX_MEMBERS:
        raise TooManyFields(f"an event has at most {MAX_MEMBERS} members", limit=MAX_MEMBERS)
    raws = raw_members(text)
    data = raws.get("data")
    scalars = {name: None if name == "data" else member for name, member in members.items()}
    nested = [raws[name] for name, member in scalars.items() if isinstance(member, (dict, list))]
    check_unique_members(text, scalars, nested if data is None else [*nested, data])
    return {name: member for name, member in members.items() if name != "data"}, data and one_line(data)


def checked_base64(encoded: Any) -> bytes:
    try:
        text: bytes = encoded.encode("ascii")
        binascii.a2b_base64(text, strict_mode=True)
    except (AttributeError, ValueError) as error:
        raise InvalidEvent("data_base64 is a string of base64 (RFC 4648, 4)", attribute="data_base64") from error
    return b'"' + text + b'"'


def binary_data(body: bytes, media_type: MediaType | None) -> tuple[bytes, int]:
    if media_type is not None and media_type.is_json:
        check_json(body)
        return one_line(body), JSON
    if not body:
        return b"", NONE
    if media_type is not None and media_type.is_text:
        try:
            return orjson.dumps(body.decode("utf-8")), TEXT
        except UnicodeDecodeError as error:
            raise InvalidEvent("text is UTF-8") from error
    return b'"' + binascii.b2a_base64(body, newline=False) + b'"', BASE64


# --- checks of single attributes ----------------------------------------------------------------------


def data_content_type(value: Any) -> MediaType:
    try:
        return parse_media_type(value) if isinstance(value, str) else parse_media_type("")
    except UnsupportedMediaType as error:
        raise InvalidAttribute("datacontenttype is a media type", attribute="datacontenttype") from error


def _check_subject(value: Any) -> str | bool | int:
    if not isinstance(value, str) or not value:
        raise InvalidAttribute("subject is a non-empty string", attribute="subject")
    return check_attribute(value)


def _check_dataschema(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidAttribute("dataschema is a non-empty URI", attribute="dataschema")
    return check_source(value)


_SPECIAL: Mapping[str, Callable[[Any], Any]] = {
    "time": check_time,
    "subject": _check_subject,
    "dataschema": _check_dataschema,
    "partitionkey": check_key,
}


@lru_cache(maxsize=4096)
def check_of(name: str) -> Callable[[Any], Any]:
    """The check for the values of an attribute, after that of its name."""
    check_attribute_name(name)
    if name.startswith(SERVER_PREFIX):
        raise ReservedField("attributes that start with 'cdrs' belong to the server")
    return _SPECIAL.get(name, check_attribute)
