"""What stands in the log, found by a reader that shares no line with the product: a plain Kafka consumer, and the rule
by which records are visible, written once more from its words (docs/architecture.md, "Judgement")."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from zlib import crc32

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]

_HEADER = struct.Struct(">BBHIIIIqqq20s")
"""version, kind, spread, data_at, CRC of the value, epoch (ordinal, random), base, accepted, floor, identity."""

Identity = tuple[str, str, str]
"""Stream, source, id."""


@dataclass(frozen=True)
class Entry:
    """A record of ours, as it lies in the topic."""

    partition: int
    offset: int
    base: int
    """The offset up to which its identity was looked up; -1 where that was in another epoch."""
    identity: Identity
    value: bytes

    @property
    def position(self) -> tuple[int, int]:
        return self.partition, self.offset


@dataclass(frozen=True)
class Judgement:
    """Every record of the topic, told apart; each in the order of the log."""

    ends: Mapping[int, int]
    """Partition → its end."""
    visible: Sequence[Entry]
    duplicates: Sequence[Entry]
    void: Sequence[Entry]

    def lines(self) -> dict[str, list[Entry]]:
        """Stream → its visible records. All streams of these tests live in one partition."""
        found: dict[str, list[Entry]] = {}
        for entry in self.visible:
            found.setdefault(entry.identity[0], []).append(entry)
        return found

    def __str__(self) -> str:
        return f"{len(self.visible)} visible, {len(self.duplicates)} duplicates, {len(self.void)} void"


def judge(entries: Sequence[Entry], ends: Mapping[int, int], window: int) -> Judgement:
    """Apply the rule: a record at offset o is void if o - base > W or base is of another epoch; a duplicate if a record
    of its identity that is not void lies in [o - W, o); else visible."""
    visible: list[Entry] = []
    duplicates: list[Entry] = []
    void: list[Entry] = []
    latest: dict[tuple[int, Identity], int] = {}
    for entry in sorted(entries, key=lambda each: each.position):
        if entry.base < 0 or entry.offset - entry.base > window:
            void.append(entry)
            continue
        before = latest.get((entry.partition, entry.identity))
        latest[entry.partition, entry.identity] = entry.offset
        (visible if before is None or before < entry.offset - window else duplicates).append(entry)
    return Judgement(ends, visible, duplicates, void)


async def read_log(url: str, prefix: str) -> tuple[list[Entry], dict[int, int]]:
    """Everything in the one topic whose name is ``prefix``, a dot, and an epoch; and where its partitions end."""
    options: dict[str, Any] = {
        "bootstrap_servers": urlsplit(url).netloc.split(","), "enable_auto_commit": False, "request_timeout_ms": 10_000,
        "auto_offset_reset": "earliest", "max_partition_fetch_bytes": 4 * 1024 * 1024,
    }  # fmt: skip
    async with AIOKafkaConsumer(**options) as consumer:
        names = [name for name in await consumer.topics() if name.startswith(f"{prefix}.") and "claim" not in name]
    assert len(names) == 1, names
    ordinal, random = names[0].removeprefix(f"{prefix}.").split("-")
    epoch = int(ordinal), int(random, 16)
    async with AIOKafkaConsumer(names[0], **options) as consumer:  # without a group it gets every partition
        partitions: list[TopicPartition] = sorted(consumer.assignment())
        assert partitions
        ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
        entries: list[Entry] = []
        while any([await consumer.position(each) < ends[each] for each in partitions]):
            for records in (await consumer.getmany(timeout_ms=2000, max_records=5000)).values():
                entries += [_entry(record, epoch) for record in records]
        return entries, {each.partition: end for each, end in ends.items()}


def _entry(record: object, epoch: tuple[int, int]) -> Entry:
    value: bytes = record.value  # type: ignore[attr-defined]
    (header,) = [content for name, content in record.headers if name == "cdrs"]  # type: ignore[attr-defined]
    version, _, _, _, crc, ordinal, random, base, _, _, _ = _HEADER.unpack(header)
    assert version == 1
    assert crc == crc32(value)
    event = json.loads(value)
    return Entry(
        record.partition,  # type: ignore[attr-defined]
        record.offset,  # type: ignore[attr-defined]
        base if (ordinal, random) == epoch else -1,
        (event["cdrsstream"], event["source"], event["id"]),
        value,
    )
