"""Where readers start: reading ``from``, and placing cursors on a log that has moved on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from sample_records import batch, record

from gateway.routing import NodeHandle
from gateway.starts import CATCH_UP_TIMEOUT, From, Gap, parse_from, resolve_start
from gateway.times import parse_rfc3339
from gateway.views import Selection
from shared.errors import Gone, InvalidCursor, InvalidFrom, Unavailable
from shared.filters import parse_filter
from shared.ports import Member
from shared.position import Cursor, Epoch
from shared.records import HistoryPage, PageQuery, Record
from shared.ring import PartitionRing
from shared.sse import Shape

EPOCH = Epoch(1, 7)
FORMER = Epoch(1, 6)
CURSOR = Cursor(EPOCH, {0: 3}).encode()


# --- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latest", From("latest")),
        ("earliest", From("earliest")),
        ("-1", From("last", 1)),
        ("-10000", From("last", 10_000)),
        ("-0005", From("last", 5)),
        ("-5m", From("ago", 300_000)),
        ("-90s", From("ago", 90_000)),
        ("-2h", From("ago", 7_200_000)),
        ("-7d", From("ago", 604_800_000)),
        ("1970-01-01T00:00:01Z", From("since", 1000)),
        ("1970-01-01t00:00:01.5z", From("since", 1500)),
        ("1970-01-01T01:00:01+01:00", From("since", 1000)),
        ("1970-01-01T01:00:01 01:00", From("since", 1000)),
        ("1970-01-01 00:00:01Z", From("since", 1000)),
        ("1969-12-31T23:00:01-01:00", From("since", 1000)),
        (CURSOR, From("cursor", cursor=CURSOR)),
        ("A" + "b" * 20, From("cursor", cursor="A" + "b" * 20)),
    ],
)
def test_every_form_is_understood(text: str, expected: From) -> None:
    assert parse_from(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "Latest", "lateest", "-", "-0", "-10001", "-9999999", "--5", "+5m", "5m", "-5w", "-m", "-1.5h",
        "-\u0663", "-\u0663m", "2026", "2026-11-20", "2026-13-20T10:00:00Z", "2026-11-20T10:00:00", "2026-11-20T1000Z",
        "2026-11-20T10:00:00+25:00", "0", "null", "A", "Axxx", "A" * 14, "B" + "b" * 40, CURSOR + "=", CURSOR + "\n",
        "latest\x00",
    ],
)  # fmt: skip
def test_everything_else_is_refused_and_not_echoed(text: str) -> None:
    with pytest.raises(InvalidFrom) as raised:
        parse_from(text)
    assert len(text) < 9 or text not in raised.value.detail


@pytest.mark.parametrize("text", ["2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999999Z"])
def test_odd_times_are_times(text: str) -> None:
    assert parse_rfc3339(text) // 1000 == 1483228799


# --- placing ---------------------------------------------------------------------------------------


class Log:
    """A log of two partitions with ten records each, the link to it, and a reader of its history."""

    def __init__(self, kept: Mapping[int, int] | None = None) -> None:
        self.kept = {0: 0, 1: 0, **(kept or {})}
        self.records: dict[int, list[Record]] = {
            partition: [
                record(o, partition=partition, stream="ab"[o % 2], append_ms=1000 * o + partition) for o in range(10)
            ]
            for partition in (0, 1)
        }
        self.asked: list[str] = []
        self.now = 0.0
        self.page_takes = 0.0

    async def ends(self) -> Mapping[int, int]:
        self.asked.append("ends")
        return {partition: len(records) for partition, records in self.records.items()}

    async def starts(self) -> Mapping[int, int]:
        self.asked.append("starts")
        return self.kept

    async def offset_at(self, append_ms: int) -> Mapping[int, int]:
        return {
            partition: next((r.offset for r in records if r.append_ms >= append_ms), len(records))
            for partition, records in self.records.items()
        }

    async def append_time(self, partition: int, offset: int) -> int | None:
        old = [r.append_ms for r in self.records[partition] if self.kept[partition] <= r.offset <= offset]
        return old[-1] if old else None

    async def page(self, query: PageQuery) -> HistoryPage:
        assert query.backwards
        self.now += self.page_takes
        found = [
            r
            for r in reversed(self.records[query.partition])
            if query.start <= r.offset < query.stop and (query.streams is None or r.stream in query.streams)
        ][: min(query.limit, 2)]
        exhausted = len(found) < 2
        return HistoryPage(found, query.start if exhausted else found[-1].offset)


class Nodes:
    def __init__(self, link: Any) -> None:
        self.epoch = EPOCH
        self.partitions = 2
        self._handles = [NodeHandle(Member("n", "1", "node", "", "", "", 1.0), link)]

    def any(self) -> NodeHandle:
        return self._handles[0]

    def former(self, epoch: Epoch) -> Mapping[int, int] | None:
        return {0: 6, 1: 10} if epoch == FORMER else None

    def ranked(self, _partition: int) -> Sequence[NodeHandle]:
        return self._handles

    def broken(self, handle: NodeHandle) -> None: ...


def context(log: Log, *, fed: Mapping[int, int] | None = None) -> Any:
    """A gateway whose feed has come this far and whose rings hold the last three records."""
    reached = fed or {0: 10, 1: 10}
    rings: dict[int, PartitionRing] = {}
    for partition, end in reached.items():
        ring = rings[partition] = PartitionRing(partition, max(end - 3, 0), max_records=100, max_bytes=10_000)
        if end:
            ring.extend(batch(*log.records[partition][max(end - 3, 0) : end], partition=partition))
    hub = SimpleNamespace(started=True, vector=SimpleNamespace(next=reached), rings=rings)
    clock = SimpleNamespace(unix_ms=lambda: 12_000, monotonic=lambda: log.now)
    return SimpleNamespace(router=Nodes(log), hub=hub, history=log, clock=clock)


def selection(
    *streams: str, patterns: tuple[str, ...] = (), partitions: tuple[int, ...] = (0, 1), wanted: str = "[]"
) -> Selection:
    return Selection(streams, patterns, parse_filter(wanted), Shape(), partitions, len(partitions) > 1)


EVERYTHING = selection(patterns=(">",))


async def test_latest_is_the_feed_for_streams_and_the_log_for_pages() -> None:
    log = Log()
    gateway = context(log, fed={0: 8, 1: 9})
    assert (await resolve_start(gateway, EVERYTHING, From("latest"))).next == {0: 8, 1: 9}
    assert log.asked == []
    assert (await resolve_start(gateway, EVERYTHING, From("latest"), strict=True)).next == {0: 10, 1: 10}


async def test_earliest_is_the_oldest_kept() -> None:
    start = await resolve_start(context(Log({0: 4})), EVERYTHING, From("earliest"))
    assert start.next == {0: 4, 1: 0}
    assert start.gaps == ()


async def test_times_are_append_times() -> None:
    gateway = context(Log())
    assert (await resolve_start(gateway, EVERYTHING, From("since", 5000))).next == {0: 5, 1: 5}
    assert (await resolve_start(gateway, EVERYTHING, From("since", 5001))).next == {0: 6, 1: 5}
    assert (await resolve_start(gateway, EVERYTHING, From("ago", 4000))).next == {0: 8, 1: 8}
    assert (await resolve_start(gateway, EVERYTHING, From("since", -5))).next == {0: 0, 1: 0}
    assert (await resolve_start(gateway, EVERYTHING, From("since", 99_000))).next == {0: 10, 1: 10}


@pytest.mark.parametrize(("count", "expected"), [(1, 8), (2, 6), (5, 0), (6, 0), (10_000, 0)])
async def test_the_last_n_of_one_stream(count: int, expected: int) -> None:
    start = await resolve_start(context(Log()), selection("a", partitions=(0,)), From("last", count))
    assert start.next == {0: expected}


async def test_the_last_n_count_what_the_filter_lets_through() -> None:
    wanted = '[{"any":[{"exact":{"id":"0-2"}},{"exact":{"id":"0-6"}}]}]'
    chosen = selection("a", partitions=(0,), wanted=wanted)
    assert (await resolve_start(context(Log()), chosen, From("last", 1))).next == {0: 6}
    assert (await resolve_start(context(Log()), chosen, From("last", 2))).next == {0: 2}
    assert (await resolve_start(context(Log()), chosen, From("last", 3))).next == {0: 2}


@pytest.mark.parametrize(("takes", "ids", "expected"), [(2, "26", 2), (9, "26", 6), (9, "2", 10)])
async def test_looking_back_for_what_a_filter_lets_through_is_bounded(takes: float, ids: str, expected: int) -> None:
    """A page has two records here. What was found in time is shown."""
    log = Log()
    log.page_takes = takes
    wanted = f'[{{"any":[{",".join(f"""{{"exact":{{"id":"0-{number}"}}}}""" for number in ids)}]}}]'
    chosen = selection("a", partitions=(0,), wanted=wanted)
    assert (await resolve_start(context(log), chosen, From("last", 2))).next == {0: expected}
    assert (await resolve_start(context(log), selection("a", partitions=(0,)), From("last", 4))).next == {0: 2}


async def test_the_last_n_of_a_spread_stream_are_the_last_overall() -> None:
    log = Log()
    assert (await resolve_start(context(log), selection("a"), From("last", 3))).next == {0: 8, 1: 6}
    assert (await resolve_start(context(log), selection("a"), From("last", 1))).next == {0: 10, 1: 8}


@pytest.mark.parametrize("chosen", [EVERYTHING, selection("a", "b"), selection("a", patterns=("b.*",))])
async def test_the_last_n_of_several_streams_are_refused(chosen: Selection) -> None:
    with pytest.raises(InvalidFrom):
        await resolve_start(context(Log()), chosen, From("last", 3))


async def test_a_cursor_in_the_ring_asks_nobody() -> None:
    log = Log()
    cursor = Cursor(EPOCH, {0: 8, 1: 10}).encode()
    start = await resolve_start(context(log), EVERYTHING, From("latest"), cursor)
    assert (start.next, start.gaps, log.asked) == ({0: 8, 1: 10}, (), [])


async def test_the_last_event_id_wins() -> None:
    cursor = Cursor(EPOCH, {0: 2, 1: 3}).encode()
    start = await resolve_start(context(Log()), EVERYTHING, From("earliest"), cursor)
    assert start.next == {0: 2, 1: 3}
    assert (await resolve_start(context(Log()), EVERYTHING, From("cursor", cursor=cursor))).next == {0: 2, 1: 3}


@pytest.mark.parametrize("text", ["nonsense", "A" * 5000, CURSOR[:-1], "\x00", "ä", " ", CURSOR + CURSOR])
async def test_an_unreadable_cursor_is_a_gap_for_streams_and_400_for_pages(text: str) -> None:
    gateway = context(Log())
    start = await resolve_start(gateway, EVERYTHING, From("earliest"), text)
    assert start.next == {0: 10, 1: 10}
    assert [gap.reason for gap in start.gaps] == ["cursor-invalid"]
    assert Cursor.decode(start.gaps[0].resumes_at).next == start.next
    with pytest.raises(InvalidCursor):
        await resolve_start(gateway, EVERYTHING, From("earliest"), text, strict=True)


async def test_a_cursor_of_another_epoch_goes_on_at_the_oldest_kept() -> None:
    gateway = context(Log({1: 2}))
    cursor = Cursor(Epoch(1, 8), {0: 5}).encode()
    start = await resolve_start(gateway, EVERYTHING, From("latest"), cursor)
    assert start.next == {0: 0, 1: 2}
    assert [gap.reason for gap in start.gaps] == ["epoch"]
    with pytest.raises(Gone):
        await resolve_start(gateway, EVERYTHING, From("latest"), cursor, strict=True)


async def test_a_cursor_of_a_former_epoch_goes_on_where_it_stands_in_this_one() -> None:
    gateway = context(Log({1: 2}))
    cursor = Cursor(FORMER, {0: 6, 1: 3}).encode()
    for strict in (False, True):
        start = await resolve_start(gateway, EVERYTHING, From("latest"), cursor, strict=strict)
        assert (start.next, start.gaps) == ({0: 6, 1: 3}, ())


async def test_what_a_former_epoch_had_beyond_is_told_to_be_lost() -> None:
    gateway = context(Log({1: 2}))
    cursor = Cursor(FORMER, {0: 8, 1: 1}).encode()
    start = await resolve_start(gateway, EVERYTHING, From("latest"), cursor)
    assert start.next == {0: 6, 1: 2}
    lost, deleted = start.gaps
    assert (lost.reason, lost.partition, lost.start, lost.stop, lost.lost) == ("epoch", 0, 8, None, None)
    assert Cursor.decode(lost.resumes_at) == Cursor(EPOCH, {0: 6})
    assert (deleted.reason, deleted.partition) == ("retention", 1)
    with pytest.raises(Gone):
        await resolve_start(gateway, EVERYTHING, From("latest"), cursor, strict=True)


async def test_a_cursor_beyond_the_log_is_told_and_only_that_partition_moves() -> None:
    gateway = context(Log())
    cursor = Cursor(EPOCH, {0: 11, 1: 4}).encode()
    start = await resolve_start(gateway, EVERYTHING, From("latest"), cursor)
    assert start.next == {0: 10, 1: 4}
    (gap,) = start.gaps
    assert (gap.reason, gap.partition, gap.start, gap.stop) == ("cursor-future", 0, 11, 10)
    with pytest.raises(Gone):
        await resolve_start(gateway, EVERYTHING, From("latest"), cursor, strict=True)


async def test_a_cursor_ahead_of_this_gateway_only_waits_for_its_feed() -> None:
    log = Log()
    gateway = context(log, fed={0: 8, 1: 10})
    cursor = Cursor(EPOCH, {0: 10, 1: 10}).encode()
    looks = 0

    class Vector:
        """A feed that arrives after some looks at it."""

        @property
        def next(self) -> Mapping[int, int]:
            nonlocal looks
            looks += 1
            return {0: 8 if looks < 6 else 10, 1: 10}

    gateway.hub.vector = Vector()
    start = await resolve_start(gateway, EVERYTHING, From("latest"), cursor)
    assert start.next == {0: 10, 1: 10}
    assert start.gaps == ()
    assert looks >= 6


async def test_a_gateway_whose_feed_stands_still_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CATCH_UP_TIMEOUT > 1
    monkeypatch.setattr("gateway.starts.CATCH_UP_TIMEOUT", 0.03)
    cursor = Cursor(EPOCH, {0: 10, 1: 10}).encode()
    with pytest.raises(Unavailable):
        await resolve_start(context(Log(), fed={0: 8, 1: 10}), EVERYTHING, From("latest"), cursor)


async def test_what_is_no_longer_kept_is_told_by_partition() -> None:
    gateway = context(Log({0: 4}))
    cursor = Cursor(EPOCH, {0: 2, 1: 3}).encode()
    for strict in (False, True):
        start = await resolve_start(gateway, EVERYTHING, From("latest"), cursor, strict=strict)
        assert start.next == {0: 4, 1: 3}
        (gap,) = start.gaps
        assert gap.detail() == {
            "reason": "retention",
            "partition": 0,
            "from": "2",
            "to": "4",
            "lost": None,
            "resumes_at": Cursor(EPOCH, {0: 4}).encode(),
        }


async def test_a_partition_the_cursor_does_not_name_starts_at_the_same_time() -> None:
    # Up to offset 4 of partition 0 was given, whose append time is 4000: partition 1 goes on from there.
    cursor = Cursor(EPOCH, {0: 5}).encode()
    start = await resolve_start(context(Log()), EVERYTHING, From("latest"), cursor)
    assert start.next == {0: 5, 1: 4}
    assert start.gaps == ()


async def test_a_partition_not_named_starts_with_the_oldest_of_those_named() -> None:
    log = Log()
    log.records[2] = [record(o, partition=2, append_ms=1000 * o) for o in range(10)]
    log.kept[2] = 0
    gateway = context(log, fed={0: 10, 1: 10, 2: 10})
    chosen = selection(patterns=(">",), partitions=(0, 1, 2))
    cursor = Cursor(EPOCH, {0: 8, 1: 3}).encode()
    assert (await resolve_start(gateway, chosen, From("latest"), cursor)).next == {0: 8, 1: 3, 2: 3}


async def test_at_the_very_beginning_the_time_is_that_of_the_first_record() -> None:
    cursor = Cursor(EPOCH, {1: 0}).encode()
    start = await resolve_start(context(Log()), EVERYTHING, From("latest"), cursor)
    assert start.next == {0: 1, 1: 0}  # partition 1 begins at 1 ms, and so does what partition 0 had from then on


async def test_an_empty_partition_tells_no_time_so_all_of_the_other_is_given() -> None:
    log = Log()
    log.records[0] = []
    start = await resolve_start(
        context(log, fed={0: 0, 1: 10}), EVERYTHING, From("latest"), Cursor(EPOCH, {0: 0}).encode()
    )
    assert start.next == {0: 0, 1: 0}


async def test_a_cursor_that_names_nothing_of_the_selection_is_told() -> None:
    cursor = Cursor(EPOCH, {1: 5}).encode()
    start = await resolve_start(context(Log()), selection("a", partitions=(0,)), From("latest"), cursor)
    assert start.next == {0: 5}
    assert start.gaps == (Gap("not-in-cursor", Cursor(EPOCH, {0: 5}).encode()),)


async def test_a_cursor_that_names_a_partition_that_is_not_there_is_told() -> None:
    """Of a log that was made anew with fewer partitions, or made up."""
    start = await resolve_start(
        context(Log()), selection("a", partitions=(0,)), From("latest"), Cursor(EPOCH, {40: 5}).encode()
    )
    assert start.next == {0: 0}
    assert [gap.reason for gap in start.gaps] == ["not-in-cursor"]


async def test_a_cursor_may_name_more_than_is_asked_for() -> None:
    cursor = Cursor(EPOCH, {0: 5, 1: 6}).encode()
    start = await resolve_start(context(Log()), selection("a", partitions=(1,)), From("latest"), cursor)
    assert (start.next, start.gaps) == ({1: 6}, ())
