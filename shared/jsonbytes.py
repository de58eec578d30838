"""JSON as bytes: strict parsing, depth, and cutting raw members out without touching them.

Payloads are opaque: whatever RFC 8259 allows goes through as it was sent, numbers of any size included. What parsers
disagree about is refused: other encodings than UTF-8, byte order marks, lone surrogates, literals such as NaN.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec
import orjson

from shared.errors import DuplicateKey, MalformedJson, TooDeep

T = TypeVar("T")

MAX_DEPTH = 32
"""Deepest nesting of arrays and objects in a payload."""

WHITE_SPACE = b" \t\r\n"

_raw_value = msgspec.json.Decoder(msgspec.Raw)
_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raw_array = msgspec.json.Decoder(list[msgspec.Raw])


def loads(text: bytes, *, depth: int = MAX_DEPTH) -> Any:
    """Parse strictly. Numbers beyond the range of a double come back as some float.

    Raises `MalformedJson`, or `TooDeep` where arrays and objects nest deeper than ``depth``.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason = error.msg
    else:
        check_depth(text, depth=depth)
        return value
    if reason.startswith("depth"):
        raise TooDeep(f"arrays and objects nest at most {depth} deep", limit=depth)
    if reason.startswith("number is infinity"):
        return _loads_huge_numbers(text, depth)
    raise MalformedJson(_explain(text))


def is_json(text: bytes) -> bool:
    """Whether this is one JSON value as `loads` takes it, but for its depth. Nothing is built, which is five times as
    fast as parsing. What nests hundreds deep may be False here: `loads` tells."""
    return _cut(_raw_value, text) is not None


def _cut(decoder: msgspec.json.Decoder[T], text: bytes) -> T | None:
    """What a decoder that builds nothing makes of a text; None where it is not what that decodes, or not UTF-8."""
    try:
        value = decoder.decode(text)
        if not text.isascii():
            text.decode("utf-8")  # the decoder looks at everything but that
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value


def are_json(lines: Sequence[bytes], text: bytes) -> bool:
    """`is_json` of each of these lines, which nothing surrounds, with one look at all of them: ``text``, which is they
    with line feeds between them. False also where one of them has so many brackets that it may be too deep."""
    try:
        # The decoder takes what is between values for white space and no more: a line may hold two, two lines one.
        values = _raw_value.decode_lines(text)
        if len(values) != len(lines) or b"\n".join(values) != text:
            return False
        if not text.isascii():
            text.decode("utf-8")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    first = bytes([line[0] for line in lines])
    begun = first.count(b"{") + first.count(b"[")
    if text.count(b"{") + text.count(b"[") - begun < MAX_DEPTH:
        return True
    return all(line.count(b"{") + line.count(b"[") <= MAX_DEPTH for line in lines)


def check_json(text: bytes) -> None:
    """Raise what `loads` would."""
    if is_json(text):
        check_depth(text)
    else:
        loads(text)


def _explain(text: bytes) -> str:
    if not text.strip(WHITE_SPACE):
        return "there is no JSON value"
    if text.startswith(b"\xef\xbb\xbf"):
        return "JSON does not start with a byte order mark"
    return "not JSON in UTF-8 (RFC 8259)"


def _loads_huge_numbers(text: bytes, depth: int) -> Any:
    """orjson refuses 1e400, which is JSON all the same; the standard library takes it, but lone surrogates too."""
    check_depth(text, depth=depth)
    try:
        value = json.loads(
            text.decode("utf-8"), parse_int=_small_int, parse_float=lambda _: 0.0, parse_constant=_refuse
        )
        orjson.dumps(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise MalformedJson(_explain(text)) from error
    return value


def _small_int(digits: str) -> float:
    # Nothing looks at the numbers of a payload; an attribute beyond 32 bits is refused as a float is.
    return int(digits) if len(digits) <= 11 else 0.0


def _refuse(literal: str) -> None:
    raise ValueError("NaN and Infinity are not JSON")


_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def check_depth(text: bytes, *, depth: int = MAX_DEPTH) -> None:
    """Raise `TooDeep` where valid JSON nests deeper than ``depth``. Linear, and nearly free for shallow text."""
    if depth and text.find(b"{", 1) < 0 and text.find(b"[", 1) < 0:
        return  # flat: to look costs a fifth of counting
    if text.count(b"{") + text.count(b"[") <= depth:
        return
    brackets = _STRING.sub(b"", text).translate(_TO_SQUARE, _NOT_BRACKETS)
    for _ in range(depth):
        if not brackets:
            return
        # Takes away all that hold nothing any more: exactly one level, from the inside.
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise TooDeep(f"arrays and objects nest at most {depth} deep", limit=depth)


def one_line(text: bytes) -> bytes:
    """Valid JSON without white space around it and with CR and LF (they stand between tokens only) as spaces."""
    text = text.strip(WHITE_SPACE)
    if 0x0A in text or 0x0D in text:  # as numbers: five times as fast as one-byte strings
        return text.translate(_NO_BREAKS)
    return text


_NO_BREAKS = bytes.maketrans(b"\r\n", b"  ")


def raw_members(text: bytes) -> dict[str, bytes]:
    """The members of a valid JSON object, each value as the bytes it was sent as."""
    try:
        return {name: bytes(raw) for name, raw in _raw_object.decode(text).items()}
    except (msgspec.DecodeError, RecursionError) as error:
        raise MalformedJson("not a JSON object") from error


def raw_items(text: bytes) -> list[bytes] | None:
    """The items of a JSON array as `loads` takes it, but for its depth, each as the bytes it was sent as. Nothing is
    built. None where it is something else, or nests hundreds deep: `loads` tells."""
    items = _cut(_raw_array, text)
    return None if items is None else [bytes(raw) for raw in items]


def check_unique_members(text: bytes, members: dict[str, Any], nested: Iterable[bytes]) -> None:
    """Raise `DuplicateKey` where an object names a member twice.

    ``text`` is the valid object, ``members`` what it was parsed to, ``nested`` the raw values of those members that
    are strings with escapes, arrays or objects, or may be. Without escapes each string costs exactly two quotes, so a
    second naming shows in their number; only where that count is off the text is parsed again, pair by pair.
    """
    quotes, escapes = text.count(b'"'), text.count(b"\\")
    for raw in nested:
        quotes -= raw.count(b'"')
        escapes -= raw.count(b"\\")
    strings = len(members) + sum(1 for value in members.values() if value.__class__ is str)
    if not escapes and quotes == 2 * strings:
        return
    pairs: list[tuple[str, Any]] = json.loads(
        text.decode("utf-8"), object_pairs_hook=lambda found: found, parse_int=_small_int, parse_float=lambda _: 0.0
    )
    if len({name for name, _ in pairs}) != len(pairs):
        raise DuplicateKey("a member of the event is named twice")
