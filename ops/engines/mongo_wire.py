"""Just enough of MongoDB's wire protocol to make a replica set without a driver: one command out, one document back.

OP_MSG and BSON as in MongoDB's public specifications. Values are what the commands here need: documents, arrays, text,
numbers, booleans, null; of the other types an answer may hold, those of fixed or stated length are stepped over.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, cast

_OP_MSG = 2013
_MAX_ANSWER = 48 * 1024 * 1024
_FIXED = {0x07: 12, 0x09: 8, 0x11: 8, 0x13: 16, 0x06: 0, 0xFF: 0, 0x7F: 0}
"""Object id, date, timestamp, decimal, undefined, min key, max key: type → bytes."""


class MongoError(Exception):
    """The server refused the command; the message is its own."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def command(port: int, document: Mapping[str, Any], *, timeout: float = 3.0) -> dict[str, Any]:
    """Run one command (its name is the document's first key) and return the answer. Raises `MongoError` when it is
    refused or its write concern fails, `OSError` when the server cannot be asked."""
    body = struct.pack("<iB", 0, 0) + encode(document)
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.settimeout(timeout)
        connection.sendall(struct.pack("<iiii", 16 + len(body), 1, 0, _OP_MSG) + body)
        with connection.makefile("rb") as stream:
            head = stream.read(16)
            size, opcode = struct.unpack("<i8xi", head) if len(head) == 16 else (0, 0)
            if opcode != _OP_MSG or not 26 <= size <= _MAX_ANSWER or len(rest := stream.read(size - 16)) != size - 16:
                raise ConnectionError("the connection ended within the answer, or it is no MongoDB")
    try:
        answer = decode(rest[5:])
    except (struct.error, ValueError, IndexError) as error:
        raise ConnectionError(f"the answer is no document: {error}") from error
    if not answer.get("ok"):
        raise MongoError(int(answer.get("code", 0)), str(answer.get("errmsg", "refused without a reason")))
    if concern := answer.get("writeConcernError"):
        raise MongoError(int(concern.get("code", 0)), str(concern.get("errmsg", "the write concern was not met")))
    return answer


def encode(document: Mapping[str, Any]) -> bytes:
    """A document as BSON. Integers travel as 64 bits."""
    body = b"".join(_element(key, value) for key, value in document.items())
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def _element(key: str, value: Any) -> bytes:
    name = key.encode() + b"\0"
    match value:
        case None:
            return b"\x0a" + name
        case bool():
            return b"\x08" + name + bytes([value])
        case int():
            return b"\x12" + name + struct.pack("<q", value)
        case float():
            return b"\x01" + name + struct.pack("<d", value)
        case str():
            text = value.encode() + b"\0"
            return b"\x02" + name + struct.pack("<i", len(text)) + text
        case dict():
            return b"\x03" + name + encode(cast("dict[str, Any]", value))
        case list():
            items = enumerate(cast("Sequence[Any]", value))
            return b"\x04" + name + encode({str(index): item for index, item in items})
        case _:
            raise TypeError(f"{type(value).__name__} is no type of this small client")


def decode(data: bytes) -> dict[str, Any]:
    """A BSON document. Values of types that nobody here asks for are None."""
    return _decode(data, 0)[0]


def _decode(data: bytes, at: int) -> tuple[dict[str, Any], int]:
    end = at + struct.unpack_from("<i", data, at)[0]
    at += 4
    found: dict[str, Any] = {}
    while data[at] != 0:
        kind, stop = data[at], data.index(0, at + 1)
        key = data[at + 1 : stop].decode()
        found[key], at = _value(data, kind, stop + 1)
    return found, end


def _value(data: bytes, kind: int, at: int) -> tuple[Any, int]:
    match kind:
        case 0x01:
            return struct.unpack_from("<d", data, at)[0], at + 8
        case 0x02:
            size = struct.unpack_from("<i", data, at)[0]
            return data[at + 4 : at + 3 + size].decode(), at + 4 + size
        case 0x03:
            return _decode(data, at)
        case 0x04:
            document, at = _decode(data, at)
            return list(document.values()), at
        case 0x05:
            return None, at + 5 + int(struct.unpack_from("<i", data, at)[0])
        case 0x08:
            return data[at] != 0, at + 1
        case 0x0A:
            return None, at
        case 0x10:
            return struct.unpack_from("<i", data, at)[0], at + 4
        case 0x12:
            return struct.unpack_from("<q", data, at)[0], at + 8
        case _ if kind in _FIXED:
            return None, at + _FIXED[kind]
        case _:
            raise ValueError(f"a value of type {kind:#x}")
