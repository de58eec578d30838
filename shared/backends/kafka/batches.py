"""Fetched bytes → records, with care: for partitions in which somebody wrote what aiokafka cannot read. Pure.

A batch, as far as we look at it (Kafka protocol, record batch, magic 2)::

    base offset (8) | length of the rest (4) | leader epoch (4) | magic (1) | CRC (4) | attributes (2)
    | last offset delta (4) | …
"""

# mypy: disable-error-code="import-untyped"
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, cast

from aiokafka.errors import KafkaError
from aiokafka.record.memory_records import MemoryRecords

from shared.backends.kafka.client import PARSE_ERRORS
from shared.backends.kafka.codec import RawRecord

_HEAD: Final = struct.Struct(">qi")
_LAST_DELTA: Final = struct.Struct(">i")
_LAST_DELTA_AT: Final = 23
_BATCH_ERRORS: Final = (*PARSE_ERRORS, KafkaError)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Offsets [start, next) hold something that cannot be read: from the first record that could not be to the end of
    its batch."""

    start: int
    next: int
    raw: bytes
    """The batch."""


def read_carefully(data: bytes, offset: int) -> Iterator[RawRecord | Unreadable]:
    """Everything from this offset on that is complete in ``data``, in order.

    What is given does not depend on where the reading began: the records before the unreadable one in its batch are
    given, those behind it never are.
    """
    at = 0
    while at + _LAST_DELTA_AT + _LAST_DELTA.size <= len(data):
        base, length = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + length
        if end > len(data):
            return
        (delta,) = _LAST_DELTA.unpack_from(data, at + _LAST_DELTA_AT)
        yield from _read_batch(data[at:end], offset, base + delta + 1)
        at = end


def _read_batch(batch: bytes, offset: int, behind: int) -> Iterator[RawRecord | Unreadable]:
    following = offset
    try:
        parsed = MemoryRecords(batch).next_batch()
        if parsed is None or parsed.is_control_batch:
            return
        for record in parsed:
            following = max(record.offset + 1, offset)
            if record.offset >= offset:
                yield cast("RawRecord", record)
    except _BATCH_ERRORS:
        if following < behind:
            yield Unreadable(following, behind, batch)
