"""A gzip member (RFC 1951, 1952) made of pieces that were not made for it: blocks that many answers share, and the
checksum of the whole, which is each answer's own. Pure; no I/O.

Every piece begins and ends at a byte. The checksum of what is shared is kept once, and an answer keeps only what it
differs by, since CRC-32 is linear: that of a text with n bytes more is the old one, moved on by n bytes, xor theirs.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from typing import NamedTuple

HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
"""No name, no time."""
FINAL_BLOCK = b"\x03\x00"
"""An empty last block."""
MAX_STORED = 65_535

_STORED = struct.Struct("<BHH")
_TRAILER = struct.Struct("<II")
_MASK = 0xFFFF_FFFF
_POLYNOMIAL = 0xEDB8_8320
_ONE = 1 << 31


def stored(data: bytes) -> bytes:
    """Blocks that carry bytes as they are."""
    size = len(data)
    if size <= MAX_STORED:
        return _STORED.pack(0, size, size ^ 0xFFFF) + data
    return b"".join(stored(data[at : at + MAX_STORED]) for at in range(0, size, MAX_STORED))


def _multiplied(a: int, b: int) -> int:
    """Of two polynomials modulo CRC-32's, bits reversed as in the checksum."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & _MASK
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


def _squares() -> tuple[int, ...]:
    """x to the power of 8, 16, 32 and so on: 1, 2, 4 bytes."""
    powers = [1 << 23]
    while len(powers) < 64:
        powers.append(_multiplied(powers[-1], powers[-1]))
    return tuple(powers)


_SQUARES = _squares()


@lru_cache(maxsize=4096)
def _power(size: int) -> int:
    power = _ONE
    for square in _SQUARES:
        if size & 1:
            power = _multiplied(square, power)
        size >>= 1
        if not size:
            break
    return power


def moved_on(crc: int, size: int) -> int:
    """What a checksum becomes by ``size`` bytes that follow, but for those bytes' own."""
    return _multiplied(_power(size), crc) if size and crc else crc


class Place(NamedTuple):
    """How far a shared text has come: the checksum and the number of its bytes."""

    crc: int
    size: int

    def after(self, data: bytes) -> Place:
        """Behind some more of it."""
        return Place(zlib.crc32(data, self.crc), self.size + len(data))


class GzipBody:
    """The checksum of one answer, most of whose text it shares with others."""

    __slots__ = ("_crc", "_entered", "_size")

    def __init__(self) -> None:
        self._crc = 0
        self._size = 0
        self._entered = -1
        """Size of the shared text where it was joined; -1 outside. Inside, checksum and size are less that text's."""

    def enter(self, place: Place) -> None:
        """What follows is shared text, from this place on."""
        self._crc ^= place.crc
        self._size -= place.size
        self._entered = place.size

    def leave(self, place: Place) -> None:
        """It was given shared text up to this place, and none after it. Idempotent."""
        if self._entered >= 0:
            self._crc = moved_on(self._crc, place.size - self._entered) ^ place.crc
            self._size += place.size
            self._entered = -1

    def add(self, data: bytes) -> None:
        """Text of its own. Only outside."""
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)

    def trailer(self) -> bytes:
        """What ends the member. Only outside."""
        return FINAL_BLOCK + _TRAILER.pack(self._crc, self._size & _MASK)
