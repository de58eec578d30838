"""`cdrs.history`: a node that has not read everything yet says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from model_log import ModelLog, ModelStore, event

from cdrs.history import HistoryReader
from gateway.recent import latest
from shared.errors import Unavailable
from shared.records import FeedBatch, PageQuery, Record
from shared.ring import PartitionRing


class Node:
    """A node that has read less than its log holds."""

    def __init__(self, held: int, read: int) -> None:
        self.log = ModelLog(decides_identity=False)
        records: list[Record] = []
        for offset in range(held):
            e = event(offset)
            record = Record(0, offset, offset, e.identity, e.stream, None, e.value, e.data_at, e.kind, 0)
            records.append(record)
        self.records = records
        self.ring = PartitionRing(0, 0, max_records=100, max_bytes=1 << 20)
        self.read(read)
        tail: Any = SimpleNamespace(rings={0: self.ring}, broken={}, begins={0: 0}, hidden={0: set()})
        self.history = HistoryReader(self.log, ModelStore(self.log), tail)

    def read(self, upto: int) -> None:
        self.ring.extend(FeedBatch(0, self.ring.next, upto, self.records[self.ring.next : upto]))

    async def page(self, query: PageQuery) -> Any:
        return await self.history.page(query)


def back(stop: int) -> PageQuery:
    return PageQuery(0, 0, stop, 100, 1 << 20, backwards=True)


async def test_a_page_back_from_beyond_what_the_node_has_read_is_refused() -> None:
    node = Node(held=20, read=12)
    with pytest.raises(Unavailable, match="up to 12 only"):
        await node.page(back(20))
    assert [record.offset for record in (await node.page(back(12))).records] == list(range(11, -1, -1))


async def test_a_gateway_that_starts_keeps_nothing_with_a_hole() -> None:
    """It would have taken what the node lacks for offsets without an event: a silent hole for whoever resumes there."""
    node: Any = Node(held=20, read=12)
    assert await latest(node, {0: 20}, 100) == {}
    node.read(20)
    found = await latest(node, {0: 20}, 100)
    assert [record.offset for record in found[0].records] == list(range(20))


async def test_a_gateway_that_starts_waits_a_little_for_a_node_that_is_behind() -> None:
    node: Any = Node(held=20, read=12)
    asked, page = 0, node.page

    async def behind_twice(query: PageQuery) -> Any:
        nonlocal asked
        asked += 1
        if asked == 3:
            node.read(20)
        return await page(query)

    node.page = behind_twice
    assert (await latest(node, {0: 20}, 100))[0].next == 20
    assert asked == 3
