"""The one question a starter asks Kafka: who is there? Metadata request, version 1, of Kafka's public protocol."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

_METADATA, _VERSION = 3, 1
_TIMEOUT = 2.0
_MAX_ANSWER = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Metadata:
    """A broker's picture of its cluster."""

    brokers: frozenset[int]
    """Those that are registered and alive."""
    controller: int
    """Negative when none is known."""
    leaders: tuple[int, ...]
    """The leader of each partition of each topic that is not Kafka's own; partitions without one are left out."""


def metadata(port: int) -> Metadata:
    """Ask the broker at this port. Raises `OSError` when it cannot be asked or answers nonsense."""
    client = b"engines"
    request = struct.pack(f">hhih{len(client)}si", _METADATA, _VERSION, 1, len(client), client, -1)
    with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT) as connection:
        connection.settimeout(_TIMEOUT)
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as stream:
            head = stream.read(4)
            size = struct.unpack(">i", head)[0] if len(head) == 4 else -1
            if not 4 <= size <= _MAX_ANSWER or len(body := stream.read(size)) != size:
                raise ConnectionError("the connection ended within the answer")
    try:
        return parse(body)
    except (struct.error, UnicodeDecodeError) as error:
        raise ConnectionError(f"the answer is no metadata: {error}") from error


def parse(body: bytes) -> Metadata:
    """Read an answer, correlation id included. Raises `struct.error` when it is cut short."""
    reader = _Reader(body, 4)
    brokers = set[int]()
    for _ in range(reader.int32()):
        brokers.add(reader.int32())
        reader.string()  # host
        reader.int32()  # port
        reader.string()  # rack
    controller = reader.int32()
    leaders: list[int] = []
    for _ in range(reader.int32()):
        reader.int16()  # error
        reader.string()  # name
        internal = reader.int8()
        for _ in range(reader.int32()):
            reader.int16()  # error
            reader.int32()  # partition
            leader = reader.int32()
            reader.skip(4 * reader.int32())  # replicas
            reader.skip(4 * reader.int32())  # those in sync
            if leader >= 0 and not internal:
                leaders.append(leader)
    return Metadata(frozenset(brokers), controller, tuple(leaders))


class _Reader:
    def __init__(self, body: bytes, at: int) -> None:
        self._body = body
        self._at = at

    def _number(self, layout: struct.Struct) -> int:
        value: int = layout.unpack_from(self._body, self._at)[0]
        self._at += layout.size
        return value

    def int8(self) -> int:
        return self._number(struct.Struct(">b"))

    def int16(self) -> int:
        return self._number(struct.Struct(">h"))

    def int32(self) -> int:
        return self._number(struct.Struct(">i"))

    def skip(self, size: int) -> None:
        self._at += size
        if not 0 <= size <= self._at <= len(self._body):
            raise struct.error("cut short")

    def string(self) -> None:
        self.skip(max(self.int16(), 0))  # -1 = null
