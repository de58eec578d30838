"""Where an event stands: epochs, positions and the cursors that clients resume from.

A cursor is opaque to clients and carries no authority. Its bytes are::

    version (1) | epoch ordinal (varint) | epoch random (4) | count (varint)
    | count × (partition varint, next offset varint), partitions ascending | CRC-32 (4)

as base64url without padding: at most 128 characters up to 12 partitions (a longer ``Last-Event-ID`` costs browsers a
CORS preflight), at most 600 up to 48. *Next offset* is the first offset the client has not been given.
"""

from __future__ import annotations

import base64
import re
import secrets
from binascii import b2a_base64
from collections.abc import Mapping
from functools import lru_cache
from zlib import crc32

import msgspec

from shared.errors import InvalidCursor

CURSOR_VERSION = 1
MAX_CURSOR_TEXT = 1024
"""Longest cursor text that is looked at, in characters."""
MAX_OFFSET = (1 << 56) - 1
MAX_PARTITIONS = 48


class Epoch(msgspec.Struct, frozen=True, order=True, array_like=True):
    """One incarnation of the log: an ordinal, and 32 random bits drawn at its creation."""

    ordinal: int
    random: int

    @classmethod
    def create(cls, ordinal: int = 1) -> Epoch:
        """A new epoch with fresh random bits."""
        return cls(ordinal, secrets.randbits(32))

    @classmethod
    def parse(cls, text: str) -> Epoch:
        """The inverse of ``str()``. Raises ``ValueError``."""
        match = re.fullmatch(r"([1-9][0-9]{0,8})-([0-9a-f]{8})", text)
        if match is None:
            raise ValueError("an epoch looks like 1-9f3a22c1")
        return cls(int(match[1]), int(match[2], 16))

    def __str__(self) -> str:
        return f"{self.ordinal}-{self.random:08x}"


class Position(msgspec.Struct, frozen=True, order=True, array_like=True):
    """The one place of a record: epoch, partition, offset."""

    epoch: Epoch
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}/{self.partition}/{self.offset}"


class Cursor(msgspec.Struct, frozen=True):
    """What a client has been given: per partition, the next offset."""

    epoch: Epoch
    next: dict[int, int]
    """Partition → first offset not yet given."""

    def encode(self) -> str:
        """The text form, as it stands in ``id:`` lines, receipts and pages."""
        return CursorWriter(self.epoch, self.next).text()

    @classmethod
    def decode(cls, text: str) -> Cursor:
        """Read a cursor back. Raises `InvalidCursor` for anything `encode` did not make."""
        if len(text) > MAX_CURSOR_TEXT:
            raise InvalidCursor(f"a cursor has at most {MAX_CURSOR_TEXT} characters", limit=MAX_CURSOR_TEXT)
        raw = _from_base64url(text)
        if len(raw) < 11 or raw[0] != CURSOR_VERSION:
            raise InvalidCursor("not a cursor of this system")
        body, crc = raw[:-4], raw[-4:]
        if crc32(body).to_bytes(4, "big") != crc:
            raise InvalidCursor("the cursor was cut or altered")
        try:
            return cls._read(body)
        except (IndexError, ValueError) as error:
            raise InvalidCursor("the cursor was cut or altered") from error

    @classmethod
    def _read(cls, body: bytes) -> Cursor:
        ordinal, at = read_varint(body, 1)
        random = int.from_bytes(body[at : at + 4], "big")
        count, at = read_varint(body, at + 4)
        if count > MAX_PARTITIONS:
            raise ValueError("too many partitions")
        offsets: dict[int, int] = {}
        last = -1
        for _ in range(count):
            partition, at = read_varint(body, at)
            offset, at = read_varint(body, at)
            if partition <= last or partition >= MAX_PARTITIONS or offset > MAX_OFFSET:
                raise ValueError("partitions out of order")
            offsets[partition] = offset
            last = partition
        if at != len(body):
            raise ValueError("bytes left over")
        return cls(Epoch(ordinal, random), offsets)


class CursorWriter:
    """A vector of next offsets whose text is cheap to get after each single step.

    The hot path moves one partition at a time, so the varints of the others are kept as they are.
    """

    __slots__ = ("_head", "_parts", "_prefixes", "_slots", "epoch", "next")

    def __init__(self, epoch: Epoch, offsets: Mapping[int, int]) -> None:
        self.epoch = epoch
        self.next: dict[int, int] = {}
        self._slots: dict[int, int] = {}
        self._prefixes: list[bytes] = []
        self._parts: list[bytes] = []
        self._head = b""
        self.reset(offsets)

    def reset(self, offsets: Mapping[int, int]) -> None:
        """Replace the whole vector."""
        self.next = {p: offsets[p] for p in sorted(offsets)}
        self._slots = {p: i for i, p in enumerate(self.next)}
        self._prefixes = [varint(p) for p in self.next]
        self._parts = [varint(p) + varint(o) for p, o in self.next.items()]
        self._head = (
            bytes([CURSOR_VERSION])
            + varint(self.epoch.ordinal)
            + self.epoch.random.to_bytes(4, "big")
            + varint(len(self._parts))
        )

    def advance(self, partition: int, next_offset: int) -> None:
        """Set one partition's next offset; the partition must be part of the vector."""
        self.next[partition] = next_offset
        slot = self._slots[partition]
        self._parts[slot] = self._prefixes[slot] + varint(next_offset)

    def raw(self) -> bytes:
        """The cursor before its checksum, as bytes."""
        return self._head + b"".join(self._parts)

    def text(self) -> str:
        """The cursor's text form."""
        return self.bytes().decode("ascii")

    def bytes(self) -> bytes:
        """The cursor's text form as ASCII bytes."""
        body = self.raw()
        raw = body + crc32(body).to_bytes(4, "big")
        return b2a_base64(raw, newline=False).translate(_TO_URL, b"=")


class PartitionCursors:
    """The cursors of one partition: what `CursorWriter` makes for it alone, for a third of the price."""

    __slots__ = ("_block", "_block_text", "_crc", "_head")

    def __init__(self, epoch: Epoch, partition: int) -> None:
        self._block = 0
        self._block_text = b""
        """All of the last offset but its lowest seven bits, which are those of its neighbours, and as a varint."""
        start = CursorWriter(epoch, {partition: 0}).raw()
        self._head = start[:-1]
        self._crc = crc32(self._head)

    def bytes_at(self, next_offset: int) -> bytes:
        """The cursor of someone who has been given everything below this offset, as ASCII bytes."""
        block = next_offset >> 7
        if block != self._block:
            self._block, self._block_text = block, varint(block)
        end = _LOW_BYTES[next_offset & 0x7F] + self._block_text if block else _BYTES[next_offset]
        raw = self._head + end + crc32(end, self._crc).to_bytes(4, "big")
        return b2a_base64(raw, newline=False).translate(_TO_URL, b"=")

    def text_at(self, next_offset: int) -> str:
        """The same as text."""
        return self.bytes_at(next_offset).decode("ascii")


_TO_URL = bytes.maketrans(b"+/", b"-_")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")


def _from_base64url(text: str) -> bytes:
    if _BASE64URL.fullmatch(text) is None or len(text) % 4 == 1:
        raise InvalidCursor("not a cursor of this system")
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != text.encode("ascii"):
        raise InvalidCursor("not a cursor of this system")
    return raw


_BYTES = [bytes((value,)) for value in range(128)]
_LOW_BYTES = [bytes((value | 0x80,)) for value in range(128)]
"""The lowest seven bits of an integer as a varint that goes on."""


def varint(value: int) -> bytes:
    """LEB128 of a non-negative integer."""
    if value < 0x80:
        return _BYTES[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 0x20_0000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    if value < 0x1000_0000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14 & 0x7F | 0x80, value >> 21))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The integer at ``at`` and the index behind it. Raises ``IndexError`` or ``ValueError``."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                raise ValueError("not the shortest form")
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("varint too long")


def cursor_after(epoch: Epoch, partition: int, offset: int) -> str:
    """The cursor of someone who has been given exactly up to this record of one partition."""
    return partition_cursors(epoch, partition).text_at(offset + 1)


@lru_cache(maxsize=2 * MAX_PARTITIONS)
def partition_cursors(epoch: Epoch, partition: int) -> PartitionCursors:
    """The one object that makes them."""
    return PartitionCursors(epoch, partition)
