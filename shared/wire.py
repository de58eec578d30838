"""The one encoding between our own processes: msgpack, length-prefixed where messages follow each other."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from shared.errors import BY_PROBLEM, CdrsError, InternalError

CONTENT_TYPE = "application/vnd.cdrs.msgpack"
MAX_MESSAGE = 64 * 1024 * 1024
"""Largest message taken from another process, in bytes."""

T = TypeVar("T")

_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()


def encode(message: Any) -> bytes:
    """One message."""
    return _encoder.encode(message)


def decode(data: bytes | memoryview, kind: type[T]) -> T:
    """The inverse of `encode`. Raises ``msgspec.DecodeError``."""
    return msgspec.msgpack.decode(data, type=kind)


def frame(message: Any) -> bytes:
    """One message with its length in front, for a stream of messages."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into messages. Sans I/O."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes as they arrive, give the complete messages. Raises ``ValueError`` on an absurd length."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= 4:
                (length,) = _LENGTH.unpack_from(buffer, at)
                if length > MAX_MESSAGE:
                    raise ValueError(f"a message of {length} bytes")
                if len(buffer) - at - 4 < length:
                    break
                yield bytes(buffer[at + 4 : at + 4 + length])
                at += 4 + length
        finally:
            del buffer[:at]


class WireError(msgspec.Struct, frozen=True, array_like=True):
    """An error on its way to another process."""

    problem: str
    detail: str
    retry_after: float | None = None

    @classmethod
    def of(cls, error: CdrsError) -> WireError:
        """Pack."""
        return cls(error.problem or InternalError.problem, error.detail, error.retry_after)

    def error(self) -> CdrsError:
        """Unpack: the same class, where this process knows it."""
        return BY_PROBLEM.get(self.problem, InternalError)(self.detail, retry_after=self.retry_after)
