"""Records ↔ the bodies of rows in ``batches``. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

import msgspec

from shared.records import Record, fingerprint

MAX_BATCH_RECORDS: Final = 64
MAX_BATCH_BYTES: Final = 64 * 1024
"""Bytes of values in one row; a larger record has a row of its own. Both bounds limit what must be read to get at one
record."""

T = TypeVar("T")


class Shadow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is kept for a while of an event that retention has deleted."""

    identity: bytes
    fingerprint: int
    """Of its key and value (`shared.records.fingerprint`)."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Record])
_shadows = msgspec.msgpack.Decoder(list[Shadow])


def encode_batch(records: Sequence[Record]) -> bytes:
    """The body of a row."""
    return _encoder.encode(records)


def decode_batch(body: bytes | memoryview) -> list[Record]:
    """The inverse of `encode_batch`. Raises ``msgspec.MsgspecError`` for anything it did not make."""
    return _decoder.decode(body)


def decode_joined(bodies: bytes, lengths: str) -> list[Record]:
    """Records of several bodies that were joined by SQLite, with their lengths as decimal numbers between commas."""
    return _decode_all(_decoder, bodies, lengths)


def decode_joined_shadows(bodies: bytes, lengths: str) -> list[Shadow]:
    """The same of shadows."""
    return _decode_all(_shadows, bodies, lengths)


def _decode_all(decoder: msgspec.msgpack.Decoder[list[T]], bodies: bytes, lengths: str) -> list[T]:
    view = memoryview(bodies)
    found: list[T] = []
    at = 0
    for length in map(int, lengths.split(",")):
        found += decoder.decode(view[at : at + length])
        at += length
    return found


def encode_shadows(records: Sequence[Record]) -> bytes:
    """What is left of a row."""
    return _encoder.encode([Shadow(record.identity, fingerprint(record.key, record.value)) for record in records])


def decode_shadows(body: bytes | memoryview) -> list[Shadow]:
    """The inverse of `encode_shadows`, in order of the records' places."""
    return _shadows.decode(body)


def cut(records: list[Record]) -> Iterator[list[Record]]:
    """Consecutive records as the rows they are stored in."""
    for start in range(0, len(records), MAX_BATCH_RECORDS):
        group = records[start : start + MAX_BATCH_RECORDS]
        if sum([len(record.value) for record in group]) <= MAX_BATCH_BYTES:
            yield group
        else:
            yield from _cut_by_size(group)


def _cut_by_size(records: list[Record]) -> Iterator[list[Record]]:
    row: list[Record] = []
    size = 0
    for record in records:
        if row and size + len(record.value) > MAX_BATCH_BYTES:
            yield row
            row, size = [], 0
        row.append(record)
        size += len(record.value)
    if row:
        yield row
