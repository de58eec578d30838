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

    def __init__(self, held: int, read: int, persisted: int | None = None, ring: int = 100) -> None:
        self.log = ModelLog(decides_identity=False)
        records: list[Record] = []
        for offset in range(held):
            e = event(offset)
            record = Record(0, offset, offset, e.identity, e.stream, None, e.value, e.data_at, e.kind, 0)
            records.append(record)
        self.log.records[0] = self.records = records
        self.ring = PartitionRing(0, 0, max_records=ring, max_bytes=1 << 20)
        self.read(read)
        store = ModelStore(self.log, None if persisted is None else {0: persisted, 1: 0, 2: 0})
        tail: Any = SimpleNamespace(rings={0: self.ring}, broken={}, begins={0: 0}, hidden={0: set()})
        self.history = HistoryReader(self.log, store, tail)

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


@pytest.mark.parametrize("streams", [None, ["orders"], ["orders", "others"]])
async def test_a_page_from_above_the_checkpoint_has_nothing_from_below_its_start(streams: list[str] | None) -> None:
    """Where the node is behind what was asked for, and its store behind the start: it would all come a second time."""
    node = Node(held=20, read=12, persisted=5)
    for start, stop, expected in ((8, 20, range(8, 12)), (8, 10, range(8, 10)), (12, 20, ()), (15, 20, ())):
        page = await node.page(PageQuery(0, start, stop, 100, 1 << 20, streams))
        assert [record.offset for record in page.records] == list(expected)
        assert page.next == max([start, *(offset + 1 for offset in expected)])


async def test_what_was_deleted_is_not_found_in_memory_either() -> None:
    node = Node(held=20, read=20, persisted=0)
    sought = event(3)
    node.log.kept[0] = 3
    assert [record.offset for record in await node.history.find(sought.stream, "3", None)] == [3]
    node.log.kept[0] = 4
    assert not await node.history.find(sought.stream, "3", None)


async def test_a_start_by_time_is_right_while_the_store_goes_on() -> None:
    node = Node(held=20, read=20, persisted=5)
    store: Any = node.history._store
    plain = store.offset_at

    async def offset_at(append_ms: int) -> Any:
        found = await plain(append_ms)
        store.persisted = {0: 12, 1: 0, 2: 0}
        return found

    store.offset_at = offset_at
    assert (await node.history.offset_at(15))[0] == 15


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


@pytest.mark.parametrize("persisted", [0, 5, 8, 20])
async def test_an_event_that_only_the_log_has_is_not_said_to_be_unknown(persisted: int) -> None:
    """The store comes behind by more than a ring holds, as after it was away."""
    node = Node(held=20, read=20, persisted=persisted, ring=12)
    for number in (3, 15):
        if persisted <= number < node.ring.start:
            with pytest.raises(Unavailable, match="not got everything"):
                await node.history.find("orders", str(number), "/test")
        else:
            (found,) = await node.history.find("orders", str(number), "/test")
            assert found.offset == number
    if persisted >= node.ring.start:
        assert await node.history.find("orders", "99", "/test") == []
