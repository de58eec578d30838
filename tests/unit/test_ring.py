from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_records import batch, record

from shared.records import FeedBatch, Record
from shared.ring import PartitionRing


def ring(**bounds: int) -> PartitionRing:
    return PartitionRing(0, 0, max_records=bounds.get("records", 100), max_bytes=bounds.get("bytes", 10**6))


def test_a_hole_between_batches_is_refused() -> None:
    r = ring()
    r.extend(batch(record(0), record(1)))
    with pytest.raises(ValueError, match="does not follow"):
        r.extend(batch(record(3)))


def test_offsets_without_a_visible_record_are_covered() -> None:
    r = ring()
    r.extend(FeedBatch(0, 0, 10, [record(4)]))
    records, reached = r.read(0, 100, limit=10, max_bytes=10**6)
    assert [x.offset for x in records] == [4]
    assert reached == 10
    assert r.covers(10)
    assert not r.covers(11)


def test_one_page_ends_where_the_next_begins() -> None:
    r = ring()
    r.extend(batch(*[record(i) for i in range(10)]))
    first, reached = r.read(0, 9, limit=4, max_bytes=10**6)
    second, done = r.read(reached, 9, limit=100, max_bytes=10**6)
    assert [x.offset for x in first + second] == list(range(9))
    assert (reached, done) == (4, 9)


@given(
    st.lists(st.sampled_from(["a", "b", "c"]), max_size=60),
    st.integers(1, 20),
    st.integers(0, 60),
)
def test_reading_one_stream_is_reading_all_and_filtering(streams: list[str], bound: int, start: int) -> None:
    r = ring(records=bound)
    for offset, stream in enumerate(streams):
        r.extend(batch(record(offset, stream=stream)))
    assert len(r) == min(len(streams), bound)
    assert r.start == max(0, len(streams) - bound)
    if not r.covers(start):
        return
    everything, _ = r.read(start, 1000, limit=1000, max_bytes=10**9)
    for wanted in "abc":
        got, reached = r.read(start, 1000, limit=1000, max_bytes=10**9, streams=[wanted])
        assert got == [x for x in everything if x.stream == wanted]
        assert reached == r.next
    for limit in (2, 1000):
        some, reached = r.read(start, 1000, limit=limit, max_bytes=10**9, streams=["a", "c", "a", "none"])
        matching = [x for x in everything if x.stream in "ac"]
        assert some == matching[:limit]
        assert reached == (matching[limit].offset if len(matching) > limit else r.next)


def test_bytes_bound_the_ring_too() -> None:
    one: Record = record(0, data=b'"' + b"x" * 1000 + b'"')
    r = ring(bytes=len(one.value) * 3)
    for offset in range(10):
        r.extend(batch(record(offset, data=b'"' + b"x" * 1000 + b'"')))
    assert len(r) == 3
    assert r.start == 7


def test_what_stands_behind_half_of_the_room_is_pressed() -> None:
    r = ring(records=100)
    for offset in range(80):
        r.extend(batch(record(offset)))
    assert r.is_pressed(0)
    assert r.is_pressed(29)
    assert not r.is_pressed(30)
    assert not r.is_pressed(80)
    for offset in range(80, 300):
        r.extend(batch(record(offset)))
    assert r.is_pressed(249)
    assert not r.is_pressed(250)


def test_bytes_press_too_and_an_empty_ring_does_not() -> None:
    assert not ring().is_pressed(0)
    r = ring(bytes=len(record(0).value) * 10)
    for offset in range(8):
        r.extend(batch(record(offset)))
    assert r.is_pressed(2)
    assert not r.is_pressed(4)


def test_what_is_forgotten_is_not_covered() -> None:
    r = ring()
    r.extend(FeedBatch(0, 0, 10, [record(2), record(4), record(7)]))
    r.forget(5)
    assert (r.start, r.next, len(r)) == (5, 10, 1)
    assert not r.covers(4)
    assert [x.offset for x in r.read(5, 10, limit=10, max_bytes=10**6)[0]] == [7]
    r.forget(10)
    assert (r.start, r.next, len(r)) == (10, 10, 0)
    r.extend(FeedBatch(0, 10, 12, [record(11)]))
    assert [x.offset for x in r.read(10, 12, limit=10, max_bytes=10**6)[0]] == [11]
