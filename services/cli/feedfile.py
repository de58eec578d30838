"""Files of JSON lines as events: each line is the payload, byte for byte; the envelope is made from its fields.

Nothing here does network I/O, and nothing is random: the same file gives the same events, ids included, so sending it
again adds nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import orjson

from shared.errors import StartError

_ATTRIBUTE = re.compile(r"[a-z0-9]{1,20}")
_RESERVED = frozenset({"id", "source", "specversion", "type", "data", "datacontenttype", "time", "partitionkey"})


class UnusableLine(ValueError):
    """A line of which no event can be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Mapper:
    """How the fields of a line become the envelope of an event."""

    stream_from: str
    source: str
    """Identifies the file among producers; the same for every run over it."""
    prefix: str = ""
    """Put before the stream's name as it is, e.g. ``wiki.``."""
    key_from: str | None = None
    time_from: str | None = None
    type: str = "event"
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])
    """CloudEvents attribute → field."""

    def check(self) -> Mapper:
        """Refuse attribute names that no event can have. Raises `StartError`."""
        for name in self.attributes:
            if _ATTRIBUTE.fullmatch(name) is None or name in _RESERVED or name.startswith("cdrs"):
                raise StartError(f"--attr {name}=…: an attribute's name is 1 to 20 of a-z and 0-9, and not a taken one")
        return self

    def event(self, number: int, line: bytes) -> bytes:
        """The CloudEvent of one line, as one line of JSON without its end. Raises `UnusableLine`."""
        try:
            parsed: Any = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise UnusableLine(f"not JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise UnusableLine("not a JSON object")
        fields = cast("dict[str, Any]", parsed)
        envelope: dict[str, Any] = {
            "specversion": "1.0",
            "id": line_id(number, line),
            "source": self.source,
            "type": self.type,
            "cdrsstream": self.prefix + stream_token(_text(fields, self.stream_from)),
        }
        if self.key_from is not None and (key := _text(fields, self.key_from, required=False)):
            envelope["partitionkey"] = key
        if self.time_from is not None and (time := _text(fields, self.time_from, required=False)):
            envelope["time"] = time
        for name, source in self.attributes.items():
            value = fields.get(source)
            if value is not None:
                envelope[name] = value if isinstance(value, bool | int | str) else orjson.dumps(value).decode()
        # The line's own bytes, not what a decoder and an encoder would make of them: 1.0 stays 1.0.
        return orjson.dumps(envelope)[:-1] + b',"data":' + line + b"}"


def line_id(number: int, line: bytes) -> str:
    """The id of a line's event: its number (from 1), and a hash, so that an edited file is another event."""
    return f"{number}-{hashlib.blake2b(line, digest_size=8).hexdigest()}"


@lru_cache(maxsize=65_536)
def stream_token(text: str) -> str:
    """Text as (part of) a stream name: the leading '#' of channel names dropped, dots kept as separators, every other
    byte that a stream name forbids as ``_xHH``."""
    name = re.sub(rb"[^A-Za-z0-9_.-]", lambda match: b"_x%02X" % match[0][0], text.removeprefix("#").encode())
    if not name or b".." in name or name.startswith(b".") or name.endswith(b"."):
        raise UnusableLine(f"no stream name can be made of {text[:80]!r}")
    return name.decode()


def _text(fields: Mapping[str, Any], name: str, *, required: bool = True) -> str:
    value = fields.get(name)
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int | float | bool):
        return json.dumps(value)
    if required:
        raise UnusableLine(f"the field {name!r} is missing or not text")
    return ""


class FeedFile:
    """The lines of a file, and how far the reading has come."""

    def __init__(self, raw: io.BufferedReader[Any], size: int, lines: io.BufferedIOBase) -> None:
        self._raw = raw
        self._lines = lines
        self.size = size
        """Bytes of the file as it lies on disk."""

    @property
    def read_bytes(self) -> int:
        """Bytes of the file on disk that were read so far."""
        return self._raw.tell()

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """Line number (from 1) and line without its end; empty lines are passed over. Raises `StartError` where a
        compressed file is damaged."""
        try:
            for number, line in enumerate(self._lines, 1):
                stripped = line.strip()
                if stripped:
                    yield number, stripped
        except (EOFError, OSError, zlib.error) as error:
            raise StartError(f"the file cannot be read to its end: {error}") from error


@contextmanager
def open_feed_file(path: Path) -> Generator[FeedFile]:
    """Open a file of JSON lines, gzipped or not (told by its first bytes). Raises `StartError`."""
    try:
        raw = io.BufferedReader(io.FileIO(path), 1 << 18)
    except OSError as error:
        raise StartError(f"{path} cannot be read: {error.strerror}") from error
    with raw:
        zipped = raw.peek(2)[:2] == b"\x1f\x8b"
        lines: io.BufferedIOBase = io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 18) if zipped else raw
        yield FeedFile(raw, path.stat().st_size, lines)
