"""What names and values may look like. Pure checks: each returns what it was given, or raises what says why not.

Checks of what repeats from event to event (streams, types, sources, attribute names) are cached; a refusal never is.
"""

from __future__ import annotations

import calendar
import re
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from shared.errors import (
    FieldTooLong,
    InvalidAttribute,
    InvalidId,
    InvalidIdempotencyKey,
    InvalidKey,
    InvalidPattern,
    InvalidSource,
    InvalidStream,
    InvalidTime,
    InvalidType,
    NotNormalized,
    UnsupportedMediaType,
)

MAX_STREAM_BYTES = 200
MAX_STREAM_TOKENS = 16
MAX_TOKEN_BYTES = 64
MAX_ID_BYTES = 128
MAX_KEY_BYTES = 256
MAX_TYPE_BYTES = 1024
MAX_SOURCE_BYTES = 1024
MAX_ATTRIBUTE_NAME = 64
MAX_ATTRIBUTE_BYTES = 4096
MAX_MEDIA_TYPE_BYTES = 256
MAX_IDEMPOTENCY_KEY = 128

SERVER_PREFIX = "cdrs"
"""First token of the server's own streams, start of its own attributes and types."""

_WORD = r"[A-Za-z0-9_-]{1,64}"
_STREAM = re.compile(rf"{_WORD}(?:\.{_WORD}){{0,15}}")
_PATTERN = re.compile(rf"(?:(?:{_WORD}|\*)\.){{0,15}}(?:{_WORD}|\*|>)")


@lru_cache(maxsize=65_536)
def check_stream(name: str, *, writable: bool = False) -> str:
    """A stream name: 1-16 tokens of ``[A-Za-z0-9_-]{1,64}`` joined by dots, at most 200 bytes.

    ``writable``: also refuse the server's own streams, whose first token is ``cdrs``. Raises `InvalidStream`.
    """
    if len(name) > MAX_STREAM_BYTES or _STREAM.fullmatch(name) is None:
        raise InvalidStream(
            f"a stream name is 1 to {MAX_STREAM_TOKENS} tokens of letters, digits, '_' and '-', "
            f"joined by dots, at most {MAX_STREAM_BYTES} bytes"
        )
    if writable and (name == SERVER_PREFIX or name.startswith(SERVER_PREFIX + ".")):
        raise InvalidStream("streams whose first token is 'cdrs' belong to the server")
    return name


@dataclass(frozen=True, slots=True)
class Pattern:
    """A stream name in which ``*`` stands for exactly one token and a last ``>`` for one token or more.

    A wildcard in the first place does not stand for ``cdrs``: who asks for everything means everybody's events, and not
    what the server says about itself (as with ``$`` in MQTT 5, section 4.7.2). ``cdrs.>`` names those."""

    text: str
    is_exact: bool
    """No wildcard in it: it matches the one stream of this name."""
    _regex: re.Pattern[str] = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read a pattern. Raises `InvalidPattern`."""
        if len(text) > MAX_STREAM_BYTES or _PATTERN.fullmatch(text) is None:
            raise InvalidPattern(
                "a pattern is a stream name in which '*' may stand for a token and a last '>' for the rest"
            )
        # Tokens exclude dots, so this matches in linear time.
        regex = re.escape(text).replace(r"\*", r"[^.]+").replace(">", ".+")
        own = rf"(?!{SERVER_PREFIX}(?:\.|$))" if text[0] in "*>" else ""
        return cls(
            text,
            is_exact=text.isascii() and not set("*>") & set(text),
            _regex=re.compile(own + regex),
        )

    def matches(self, stream: str) -> bool:
        """Whether a (valid) stream name is covered."""
        if self.is_exact:
            return stream == self.text
        return self._regex.fullmatch(stream) is not None


def _bad_text(text: str) -> bool:
    """Whether text holds control or format characters, line or paragraph separators, surrogates, noncharacters."""
    # Everything printable (in Python's sense) is harmless, and that test runs in C; the rest is rare.
    return not text.isprintable() and any(map(_bad_char, text))


def _bad_char(char: str) -> bool:
    return unicodedata.category(char) in _BAD_CATEGORIES or _is_nonchar(char)


_BAD_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def _is_nonchar(char: str) -> bool:
    code = ord(char)
    return code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def check_event_id(event_id: object) -> str:
    """An event id: 1-128 bytes of UTF-8 without control or format characters, not starting with ``#``.

    Raises `InvalidId`.
    """
    if not isinstance(event_id, str) or not event_id:
        raise InvalidId("an event id is a non-empty string")
    if event_id.isascii() and event_id.isprintable() and event_id[0] != "#" and len(event_id) <= MAX_ID_BYTES:
        return event_id
    if len(event_id) > MAX_ID_BYTES or _bytes_of(event_id) > MAX_ID_BYTES:
        raise InvalidId(f"an event id has at most {MAX_ID_BYTES} bytes", limit=MAX_ID_BYTES)
    if event_id[0] == "#":
        raise InvalidId("an event id does not start with '#'")
    if _bad_text(event_id):
        raise InvalidId("an event id holds no control or format characters")
    return event_id


def check_type(event_type: object) -> str:
    """A CloudEvents type: 1-1024 bytes without control or format characters, not the server's own. `InvalidType`."""
    if not isinstance(event_type, str) or not event_type:
        raise InvalidType("an event type is a non-empty string")
    return _check_type(event_type)


@lru_cache(maxsize=4096)
def _check_type(event_type: str) -> str:
    if _bytes_of(event_type) > MAX_TYPE_BYTES:
        raise InvalidType(f"an event type has at most {MAX_TYPE_BYTES} bytes", limit=MAX_TYPE_BYTES)
    if _bad_text(event_type):
        raise InvalidType("an event type holds no control or format characters")
    if event_type.startswith(SERVER_PREFIX + "."):
        raise InvalidType("types that start with 'cdrs.' belong to the server")
    return event_type


# Characters that RFC 3986 keeps out of a URI-reference; what is beyond ASCII is let through (RFC 3987).
_NOT_IN_URI = re.compile(r'[\x00-\x20\x7f"<>\\^`{|}\s]')


def check_source(source: object) -> str:
    """A CloudEvents source: a non-empty URI-reference of at most 1024 bytes. Raises `InvalidSource`."""
    if not isinstance(source, str) or not source:
        raise InvalidSource("an event source is a non-empty URI-reference")
    return _check_source(source)


@lru_cache(maxsize=4096)
def _check_source(source: str) -> str:
    if _bytes_of(source) > MAX_SOURCE_BYTES:
        raise InvalidSource(f"an event source has at most {MAX_SOURCE_BYTES} bytes", limit=MAX_SOURCE_BYTES)
    if _NOT_IN_URI.search(source) is not None or _bad_text(source):
        raise InvalidSource("an event source is a URI-reference: no spaces, quotes, brackets or control characters")
    return source


def check_key(key: object) -> str:
    """An ordering key: 1-256 bytes of UTF-8 in normalisation form C, without control characters.

    Raises `InvalidKey` or `NotNormalized`.
    """
    if not isinstance(key, str) or not key:
        raise InvalidKey("an ordering key is a non-empty string")
    if key.isascii() and key.isprintable() and len(key) <= MAX_KEY_BYTES:
        return key
    if len(key) > MAX_KEY_BYTES or _bytes_of(key) > MAX_KEY_BYTES:
        raise InvalidKey(f"an ordering key has at most {MAX_KEY_BYTES} bytes", limit=MAX_KEY_BYTES)
    if not unicodedata.is_normalized("NFC", key):
        raise NotNormalized("an ordering key is in Unicode normalisation form C")
    if not key.isprintable() and any(unicodedata.category(c) in _CONTROL or _is_nonchar(c) for c in key):
        raise InvalidKey("an ordering key holds no control characters")
    return key


_CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})

_TIME = re.compile(
    r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    r"[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]{1,64})?"
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)


def check_time(time: object) -> str:
    """An RFC 3339 timestamp, of any year: data, never used for order. Raises `InvalidTime`."""
    if not isinstance(time, str) or _TIME.fullmatch(time) is None or not _day_exists(time):
        raise InvalidTime("an event time is an RFC 3339 timestamp such as 2015-09-12T00:46:58.771Z")
    return time


def _day_exists(time: str) -> bool:
    if time[8] < "3" and time[8:10] != "29":
        return True
    year, month, day = int(time[:4]), int(time[5:7]), int(time[8:10])
    # Year 0 is written 0000 and is a leap year; monthrange knows years from 1 only.
    return day <= calendar.monthrange(year or 4, month)[1]


_ATTRIBUTE_NAME = re.compile(r"[a-z0-9]{1,64}")


@lru_cache(maxsize=4096)
def check_attribute_name(name: str) -> str:
    """A CloudEvents attribute name: ``[a-z0-9]{1,64}``. Raises `InvalidAttribute` or `FieldTooLong`."""
    if len(name) > MAX_ATTRIBUTE_NAME:
        raise FieldTooLong(f"an attribute name has at most {MAX_ATTRIBUTE_NAME} characters", limit=MAX_ATTRIBUTE_NAME)
    if _ATTRIBUTE_NAME.fullmatch(name) is None:
        raise InvalidAttribute("an attribute name is lower-case letters and digits")
    return name


# CloudEvents 1.0, 2.2 "String": what a string value may not contain.
_NOT_IN_STRING = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
    + "]"
)


def check_attribute(value: Any) -> str | bool | int:
    """The value of an attribute: a string of at most 4 KiB without control characters, a boolean, a 32-bit integer.

    Raises `InvalidAttribute` or `FieldTooLong`.
    """
    if isinstance(value, str):
        if _bytes_of(value) > MAX_ATTRIBUTE_BYTES:
            raise FieldTooLong(f"an attribute value has at most {MAX_ATTRIBUTE_BYTES} bytes", limit=MAX_ATTRIBUTE_BYTES)
        if not value.isprintable() and _NOT_IN_STRING.search(value) is not None:
            raise InvalidAttribute("an attribute value holds no control characters")
        return value
    if isinstance(value, int) and -(2**31) <= value < 2**31:
        return value
    raise InvalidAttribute("an attribute value is a string, a boolean or a 32-bit integer")


_IDEMPOTENCY_KEY = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\]){1,128})"')


def check_idempotency_key(header: str) -> str:
    """The ``Idempotency-Key`` header: an RFC 9651 string (in double quotes) of 1-128 characters; what is inside.

    Raises `InvalidIdempotencyKey`.
    """
    match = _IDEMPOTENCY_KEY.fullmatch(header.strip(" \t"))
    if match is None:
        raise InvalidIdempotencyKey(
            f'Idempotency-Key is a quoted string of 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters, e.g. "a1"'
        )
    return re.sub(r"\\(.)", r"\1", match[1])


_TCHAR = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
# After a ';' a parameter must follow (but for a last one), so there is one way only to match and no backtracking.
_MEDIA_TYPE = re.compile(rf"({_TCHAR}/{_TCHAR})((?:[ \t]*;[ \t]*{_TCHAR}=(?:{_TCHAR}|\"[^\"\\]*\"))*)[ \t]*;?[ \t]*")
_PARAMETER = re.compile(rf";[ \t]*({_TCHAR})=({_TCHAR}|\"[^\"\\]*\")")


@dataclass(frozen=True, slots=True)
class MediaType:
    """A parsed ``Content-Type`` (RFC 9110, 8.3.1)."""

    text: str
    """As it was written, without white space around it."""
    essence: str
    """``type/subtype`` in lower case."""
    charset: str | None
    """Lower case; None where there is no such parameter."""

    @property
    def is_json(self) -> bool:
        """Subtype ``json`` or suffix ``+json`` (CloudEvents JSON format, 3.1)."""
        return self.essence.endswith(("/json", "+json"))

    @property
    def is_text(self) -> bool:
        """``text/*``."""
        return self.essence.startswith("text/")


@lru_cache(maxsize=1024)
def parse_media_type(text: str) -> MediaType:
    """Read a content type of at most 256 bytes. Raises `UnsupportedMediaType`."""
    text = text.strip(" \t")
    match = _MEDIA_TYPE.fullmatch(text) if len(text) <= MAX_MEDIA_TYPE_BYTES else None
    if match is None:
        raise UnsupportedMediaType("the content type is not of the form type/subtype; name=value")
    charsets = [value.strip('"').lower() for name, value in _PARAMETER.findall(match[2]) if name.lower() == "charset"]
    if len(set(charsets)) > 1:
        raise UnsupportedMediaType("the content type names two charsets")
    return MediaType(text, match[1].lower(), charsets[0] if charsets else None)
