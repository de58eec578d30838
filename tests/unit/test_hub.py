"""The hub's core without sockets: writers that take bytes when a test says so."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

import orjson
import pytest
from running_hub import running_hub
from sample_records import batch, record
from spec_parser import SpecParser

from gateway.hub import SLICE, WAVES, Hub
from gateway.subscriber import Subscriber
from gateway.views import Selection
from shared.clock import SystemClock
from shared.filters import parse_filter
from shared.position import Cursor, Epoch
from shared.records import FeedBatch
from shared.settings import SseSettings
from shared.sse import Shape
from shared.telemetry import Telemetry

EPOCH = Epoch(1, 7)


class Sink:
    """A writer whose client takes everything at once, or nothing until `take`."""

    def __init__(self, *, eager: bool = True) -> None:
        self.ready = True
        self.eager = eager
        self.chunks: list[bytes] = []
        self.lagged = False
        self.ended = False
        self.parser = SpecParser()

    def write(self, chunk: bytes) -> None:
        assert self.ready
        self.chunks.append(chunk)
        self.parser.feed(chunk)
        self.ready = self.eager

    def lag(self) -> None:
        self.lagged = True

    def finish(self, chunk: bytes) -> None:
        self.ended = True
        self.parser.feed(chunk)

    @property
    def offsets(self) -> list[str]:
        return [orjson.loads(e.data)["id"] for e in self.parser.events if not e.name.startswith("cdrs.")]


def selection(
    *streams: str, patterns: tuple[str, ...] = (), wanted: str = "[]", vector: bool = False, named: bool = False
) -> Selection:
    partitions = (0, 1) if vector else (0,)
    return Selection(streams, patterns, parse_filter(wanted), Shape(named=named), partitions, vector)


def running(**settings: float) -> AbstractAsyncContextManager[Hub]:
    return running_hub(EPOCH, SystemClock(), **settings)


def enter(hub: Hub, asked: Selection, *, eager: bool = True, expires: float = 1e12) -> tuple[Subscriber, Sink]:
    writer = Sink(eager=eager)
    subscriber = Subscriber(writer, b"", remote="", now=SystemClock().monotonic(), expires=expires)
    hub.open(subscriber)
    hub.join(subscriber, asked)
    assert hub.go_live(subscriber)
    return subscriber, writer


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_subscribers_of_one_view_share_the_very_bytes() -> None:
    async with running() as hub:
        sinks = [enter(hub, selection("orders"))[1] for _ in range(3)]
        hub.sink(batch(record(0), record(1)))
        await settle()
        assert [s.offsets for s in sinks] == [["0-0", "0-1"]] * 3
        assert len(sinks[0].chunks) == 1
        assert sinks[0].chunks[0] is sinks[1].chunks[0] is sinks[2].chunks[0]


async def test_ids_are_own_positions_in_one_partition_and_vectors_else() -> None:
    async with running() as hub:
        _, one = enter(hub, selection("orders"))
        _, many = enter(hub, selection(patterns=(">",), vector=True))
        hub.sink(batch(record(0), partition=0))
        hub.sink(batch(record(0, partition=1, stream="other"), partition=1))
        await settle()
        assert Cursor.decode(one.parser.last_id) == Cursor(EPOCH, {0: 1})
        assert Cursor.decode(many.parser.last_id) == Cursor(EPOCH, {0: 1, 1: 1})
        assert many.offsets == ["0-0", "1-0"]


async def test_frames_of_other_shapes_differ_but_events_are_the_same() -> None:
    async with running() as hub:
        _, plain = enter(hub, selection("orders"))
        _, named = enter(hub, selection("orders", named=True))
        hub.sink(batch(record(0)))
        await settle()
        assert plain.parser.events[0].name == "message"
        assert named.parser.events[0].name == "edit"
        assert plain.parser.events[0].data == named.parser.events[0].data


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ('[{"exact":{"type":"edit"}}]', ["0-0", "0-2"]),
        ('[{"not":{"exact":{"type":"edit"}}}]', ["0-1"]),
        ('[{"exact":{"level":"3"}}]', ["0-2"]),
    ],
)
async def test_filters(wanted: str, ids: list[str]) -> None:
    async with running() as hub:
        _, sink = enter(hub, selection("orders", wanted=wanted))
        hub.sink(batch(record(0), record(1, type="view"), record(2, level=3)))
        await settle()
        assert sink.offsets == ids


async def test_patterns_see_streams_born_later() -> None:
    async with running() as hub:
        hub.sink(batch(record(0, stream="wiki.en")))
        _, sink = enter(hub, selection(patterns=("wiki.*",), vector=True))
        hub.sink(batch(record(1, stream="wiki.en"), record(2, stream="wiki.en.talk"), record(3, stream="wiki.no")))
        await settle()
        assert sink.offsets == ["0-1", "0-3"]


async def test_a_slow_subscriber_costs_nobody_anything_and_is_sent_to_history() -> None:
    async with running(backlog_bytes=4096) as hub:
        slow, slow_sink = enter(hub, selection("orders"), eager=False)
        _, fast_sink = enter(hub, selection("orders"))
        for offset in range(200):
            hub.sink(batch(record(offset)))
            await settle()
        assert fast_sink.offsets == [f"0-{i}" for i in range(200)]
        assert slow_sink.offsets == ["0-0"]
        slow_sink.ready = True
        hub.service(slow)
        assert slow_sink.lagged
        assert slow.view is None
        assert Cursor.decode(slow.cursor.decode()).next == {0: 1}


async def test_what_comes_while_a_client_is_busy_is_joined_into_one_write() -> None:
    async with running() as hub:
        subscriber, sink = enter(hub, selection("orders"), eager=False)
        for offset in range(10):
            hub.sink(batch(record(offset)))
            await settle()
        sink.ready = True
        hub.service(subscriber)
        assert len(sink.chunks) == 2
        assert sink.offsets == [f"0-{i}" for i in range(10)]


async def test_a_write_is_bounded() -> None:
    async with running(write_bytes=4096) as hub:
        subscriber, sink = enter(hub, selection("orders"), eager=False)
        hub.sink(batch(*[record(i) for i in range(100)]))
        await settle()
        while subscriber.seq < 100:
            sink.ready = True
            hub.service(subscriber)
        assert max(map(len, sink.chunks)) <= 4096
        assert sink.offsets == [f"0-{i}" for i in range(100)]


async def test_joining_keeps_frames_until_history_is_read() -> None:
    async with running() as hub:
        writer = Sink()
        subscriber = Subscriber(writer, b"", remote="", now=0, expires=1e12)
        hub.open(subscriber)
        hub.sink(batch(record(0)))
        target = hub.join(subscriber, selection("orders"))
        assert target == {0: 1, 1: 0}
        hub.sink(batch(record(1)))
        await settle()
        assert writer.chunks == []
        assert hub.go_live(subscriber)
        hub.service(subscriber)
        assert writer.offsets == ["0-1"]


async def test_a_join_whose_place_is_gone_must_be_repeated() -> None:
    async with running(backlog_bytes=4096) as hub:
        subscriber = Subscriber(Sink(), b"", remote="", now=0, expires=1e12)
        hub.open(subscriber)
        hub.join(subscriber, selection("orders"))
        for offset in range(100):
            hub.sink(batch(record(offset)))
            await settle()
        assert not hub.go_live(subscriber)
        assert hub.join(subscriber, selection("orders"))[0] == 100
        assert hub.go_live(subscriber)


async def test_idle_streams_get_cursor_blocks_that_carry_progress() -> None:
    async with running(heartbeat=0.1) as hub:
        _, sink = enter(hub, selection("quiet"))
        hub.sink(batch(record(0), record(1)))
        await until(lambda: sink.parser.events)
        assert {e.name for e in sink.parser.events} == {"cdrs.cursor"}
        assert Cursor.decode(sink.parser.last_id).next == {0: 2}


async def test_old_streams_are_rotated() -> None:
    async with running(heartbeat=0.1) as hub:
        _, sink = enter(hub, selection("orders"), expires=0)
        await until(lambda: sink.ended)
        bye = sink.parser.events[-1]
        assert (bye.name, orjson.loads(bye.data)["reason"]) == ("cdrs.bye", "rotate")
        assert len(hub) == 0


async def test_drain_says_bye_to_everyone() -> None:
    async with running() as hub:
        sinks = [enter(hub, selection("orders"))[1] for _ in range(30)]
        await hub.drain(0.1)
        assert all(s.ended for s in sinks)
        retries = {orjson.loads(s.parser.events[-1].data)["retry_ms"] for s in sinks}
        assert len(retries) > 10
        assert len(hub) == 0


class Still(SystemClock):
    """Nobody ever takes any time."""

    def monotonic(self) -> float:
        return 0.0


async def test_the_farewells_of_a_wave_are_said_in_slices() -> None:
    hub = Hub(SseSettings(), Still(), Telemetry(version="test"))
    hub.start(EPOCH, {0: 0, 1: 0})
    sinks = [enter(hub, selection("orders"))[1] for _ in range(WAVES * 150)]
    draining = asyncio.create_task(hub.drain(0))
    said, most = 0, 0
    while not draining.done():
        await asyncio.sleep(0)
        now = len(sinks) - len(hub)
        said, most = now, max(most, now - said)
    assert most == SLICE
    assert all(sink.ended for sink in sinks)


async def test_a_reader_who_has_fallen_out_of_its_view_holds_nothing() -> None:
    async with running(backlog_bytes=4096) as hub:
        slow, sink = enter(hub, selection("orders"), eager=False)
        view = slow.view
        assert view is not None
        offset = 0
        while slow.seq >= view.first:
            hub.sink(batch(record(offset)))
            await settle()
            offset += 1
        assert offset > 10
        assert view.first == view.end, "nobody else is there"
        for number in range(10):
            hub.sink(batch(record(offset + number)))
            await settle()
            assert view.first == view.end
        sink.ready = True
        hub.service(slow)
        assert sink.lagged


async def test_a_view_without_subscribers_holds_nothing() -> None:
    async with running() as hub:
        subscriber, _ = enter(hub, selection("orders"))
        hub.close(subscriber, "client")
        hub.sink(batch(record(0)))
        assert len(hub._index) == 0
        assert not hub._dirty


async def test_many_views_of_few_are_swept_in_slices_as_one_of_many_is() -> None:
    """10,000 private streams in one batch must not keep heartbeats and new connections waiting."""
    async with running() as hub:
        sinks = [enter(hub, selection(f"private.{n}"))[1] for n in range(2_000)]
        hub.sink(batch(*[record(n, stream=f"private.{n}") for n in range(2_000)]))
        turns = 0
        while not all(sink.chunks for sink in sinks):
            turns += 1
            assert turns < 100
            await asyncio.sleep(0)
        assert turns >= 2_000 / 256


async def test_writers_that_want_ready_made_chunks_share_them() -> None:
    async with running() as hub:
        sinks = []
        for framed in (True, False, True):
            writer = Sink()
            subscriber = Subscriber(writer, b"", remote="", now=0, expires=1e12, framed=framed)
            hub.open(subscriber)
            hub.join(subscriber, selection("orders"))
            assert hub.go_live(subscriber)
            sinks.append(writer)
        hub.sink(batch(record(0), record(1)))
        await settle()
        one, plain, two = (sink.chunks[0] for sink in sinks)
        assert one is two
        assert one == b"%x\r\n%s\r\n" % (len(plain), plain)


async def test_a_reader_who_takes_everything_gets_the_rest_without_a_new_event() -> None:
    async with running(write_bytes=4096) as hub:
        _, sink = enter(hub, selection("orders"))
        hub.sink(batch(*[record(i) for i in range(100)]))
        await settle()
        assert sink.offsets == [f"0-{i}" for i in range(100)]
        assert max(map(len, sink.chunks)) <= 4096
        assert len(sink.chunks) > 1


async def test_what_history_has_lost_is_told_to_whoever_reads_that_partition() -> None:
    async with running() as hub:
        _, concerned = enter(hub, selection("s"))
        _, everything = enter(hub, selection(patterns=(">",), vector=True))
        _, other = enter(hub, Selection(("t",), (), None, Shape(), (1,), False))
        hub.sink(FeedBatch(0, 0, 10, [record(8, stream="s")], [(2, 5)]))
        await settle()
        for reader in (concerned, everything):
            gap, event = reader.parser.events[-2:]
            assert gap.name == "cdrs.gap"
            told = orjson.loads(gap.data)
            assert (told["reason"], told["partition"], told["from"], told["to"]) == ("damage", 0, "2", "5")
            assert Cursor.decode(told["resumes_at"]).next == {0: 5}
            assert orjson.loads(event.data)["id"]
        assert not other.parser.events
        assert not hub.rings[0].covers(4), "a later reader would not be told"
        assert hub.rings[0].covers(5)


async def test_a_gateway_that_starts_knows_what_came_right_before() -> None:
    hub = Hub(SseSettings(), SystemClock(), Telemetry(version="test"))
    before = batch(*[record(offset) for offset in range(90, 100)])
    hub.start(EPOCH, {0: 100, 1: 7}, {0: before})
    assert hub.vector.next == {0: 100, 1: 7}, "whoever asks for the latest starts behind it"
    assert hub.rings[0].covers(90)
    assert not hub.rings[0].covers(89)
    assert [found.offset for found in hub.rings[0].read(95, 200, limit=10, max_bytes=10_000)[0]] == [95, 96, 97, 98, 99]
    assert not hub.rings[1].covers(6)
    hub.sink(batch(record(100)))
    assert hub.rings[0].next == 101
