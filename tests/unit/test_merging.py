"""Records of several partitions in one order, with what history has lost in its place."""

from __future__ import annotations

from contextlib import aclosing

import pytest

from gateway.merging import Item, Missing, merged
from gateway.views import Selection
from shared.records import HistoryPage, PageQuery, Record
from shared.sse import Shape

STOP = 40
LOST = {0: [(5, 8), (8, 9), (39, 40)], 1: [(0, 3), (20, 21)]}


def record(partition: int, offset: int) -> Record:
    stream = "ab"[offset % 2]
    return Record(partition, offset, 1000 + 2 * offset + partition, b"i", stream, None, b"{}", 0, 1, 0)


class Damaged:
    """Two partitions of which something is lost; pages are small."""

    def __init__(self, size: int) -> None:
        self.size = size

    async def page(self, query: PageQuery) -> HistoryPage:
        lost = LOST[query.partition]
        stop = min(query.start + self.size, query.stop)
        records = [
            record(query.partition, offset)
            for offset in range(query.start, stop)
            if not any(first <= offset < last for first, last in lost)
        ]
        missing = [(max(a, query.start), min(b, stop)) for a, b in lost if a < stop and b > query.start]
        return HistoryPage([r for r in records if query.streams is None or r.stream in query.streams], stop, missing)


def selection(*streams: str) -> Selection:
    return Selection(streams, () if streams else (">",), None, Shape(), (0, 1), True)


def offsets(items: list[Item], partition: int) -> list[int]:
    """All offsets that were given out or told to be lost; checks that both ascend."""
    found: list[int] = []
    for item in items:
        if item.partition == partition:
            found += range(item.offset, item.stop) if isinstance(item, Missing) else [item.offset]
    assert found == sorted(set(found))
    return found


@pytest.mark.parametrize("size", [1, 3, 7, 100])
async def test_what_is_lost_is_told_in_its_place(size: int) -> None:
    items = [item async for item in merged(Damaged(size), selection(), {0: 0, 1: 0}, {0: STOP, 1: STOP}) if item]
    for partition in (0, 1):
        assert offsets(items, partition) == list(range(STOP))
        told = [range(i.offset, i.stop) for i in items if isinstance(i, Missing) and i.partition == partition]
        assert [offset for each in told for offset in each] == [
            offset for first, stop in LOST[partition] for offset in range(first, stop)
        ]
    times = [item.append_ms for item in items if isinstance(item, Record)]
    assert times == sorted(times)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
async def test_whoever_stops_anywhere_is_told_all_of_it_once(size: int) -> None:
    """A page that is full, a reader that is cut: what goes on from `position` misses nothing and repeats nothing."""
    position = {0: 0, 1: 0}
    items: list[Item] = []
    while any(offset < STOP for offset in position.values()):
        async with aclosing(merged(Damaged(size), selection("a"), position, {0: STOP, 1: STOP})) as found:
            async for item in found:
                if item is not None:
                    items.append(item)
                    break
    for partition in (0, 1):
        lost = [offset for first, stop in LOST[partition] for offset in range(first, stop)]
        kept = [offset for offset in range(0, STOP, 2) if offset not in lost]
        assert offsets(items, partition) == sorted({*lost, *kept})


class Forgetful:
    """One partition whose floor moves up while it is read."""

    def __init__(self, floors: list[int]) -> None:
        self.floors = floors

    async def page(self, query: PageQuery) -> HistoryPage:
        floor = self.floors.pop(0) if len(self.floors) > 1 else self.floors[0]
        low, stop = max(query.start, floor), min(max(query.start, floor) + 5, query.stop)
        stop = max(stop, min(floor, query.stop))
        deleted = [(query.start, min(floor, stop))] if floor > query.start else []
        return HistoryPage([record(0, offset) for offset in range(low, stop)], stop, [], deleted)


@pytest.mark.parametrize("floors", [[0], [7], [0, 13], [0, 5, 13, 30], [0, 99], [99]])
async def test_a_floor_that_moves_while_it_is_read_is_told_exactly(floors: list[int]) -> None:
    asked = Selection((), (">",), None, Shape(), (0,), False)
    items = [item async for item in merged(Forgetful(list(floors)), asked, {0: 0}, {0: STOP}) if item]
    assert offsets(items, 0) == list(range(STOP))
    told = [item for item in items if isinstance(item, Missing)]
    assert {item.reason for item in told} <= {"retention"}
    assert bool(told) == (floors != [0])
