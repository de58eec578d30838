"""Reading stretches of the log again, on a reader whose batches are cut as the log likes."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from model_log import event

from cdrs.rereading import LogReader
from shared.errors import Unavailable
from shared.records import LogBatch, Record
from shared.ring import PartitionRing


def record(offset: int) -> Record:
    e = event(offset)
    return Record(0, offset, offset, e.identity, e.stream, None, e.value, e.data_at, e.kind, 0)


class Log:
    """A log of one partition and its only reader; a batch has all that is there, whatever was asked for."""

    def __init__(self) -> None:
        self.end = 0
        self.position = 0

    def tail(self, positions: dict[int, int]) -> Log:
        self.position = positions[0]
        return self

    def seek(self, _partition: int, offset: int) -> None:
        self.position = offset

    async def poll(self, *, max_records: int, timeout: float) -> Sequence[LogBatch]:
        start, self.position = self.position, self.end
        return [LogBatch(0, start, self.end, [record(offset) for offset in range(start, self.end)])]

    async def close(self) -> None:
        """Nothing to close."""


async def test_what_a_batch_brings_beyond_its_chunk_is_part_of_the_next_one() -> None:
    log: Any = Log()
    ring = PartitionRing(0, 0, max_records=100, max_bytes=1 << 20)
    tail: Any = SimpleNamespace(begins={0: 0}, hidden={0: set()}, rings={0: ring})
    reader = LogReader(log, tail)
    log.end, ring.next = 11, 10
    assert [r.offset for r in (await reader.read(0, 0, 10)).records] == list(range(10))
    log.end = ring.next = 20
    assert [r.offset for r in (await reader.read(0, 10, 20)).records] == list(range(10, 20))


async def test_what_the_tail_forgot_meanwhile_is_refused() -> None:
    """Others have stored it while it was read, so the tail no longer keeps which of it is not visible."""
    log: Any = Log()
    ring = PartitionRing(0, 0, max_records=100, max_bytes=1 << 20)
    tail: Any = SimpleNamespace(begins={0: 0}, hidden={0: {3}}, rings={0: ring})
    reader = LogReader(log, tail)
    log.end = ring.next = 10
    poll = log.poll

    async def forgets(**asked: Any) -> Sequence[LogBatch]:
        tail.begins, tail.hidden = {0: 5}, {0: set()}
        found: Sequence[LogBatch] = await poll(**asked)
        return found

    log.poll = forgets
    with pytest.raises(Unavailable):
        await reader.read(0, 0, 10)
    assert [r.offset for r in (await reader.read(0, 5, 10)).records] == [5, 6, 7, 8, 9]
