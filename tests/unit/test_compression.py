"""Shared gzip without sockets: whatever happens to a view's readers, each of them has been given one valid gzip member,
complete up to its last byte, with the text that an uncompressed reader would have got."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sample_records import batch, record

from gateway.gzip_body import MAX_STORED, GzipBody, Place, moved_on, stored
from gateway.hub import Hub
from gateway.subscriber import DEFLATED, STORED, Subscriber
from gateway.views import Selection, View
from shared.position import Epoch
from shared.settings import SseSettings
from shared.sse import DEFAULT_SHAPE
from shared.telemetry import Telemetry

ORDERS = Selection(("orders",), (), None, DEFAULT_SHAPE, (0,), False)


class HandClock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def unix_ms(self) -> int:
        return 1_700_000_000_000


class Client:
    """A writer, and the reader behind it: decodes each write at once, and compares with the text it should be."""

    def __init__(self, *, gzip: bool) -> None:
        self.ready = True
        self.lagged = False
        self.wanted = b""
        self.wire = 0
        self.subscriber = Subscriber(self, b"", remote="", now=0, expires=1e12, gzip=gzip)
        self._decoder = zlib.decompressobj(31) if gzip else None
        self._text = b""

    def write(self, chunk: bytes, /) -> None:
        assert self.ready
        self.take(chunk)

    def take(self, chunk: bytes) -> None:
        self.wire += len(chunk)
        self._text += chunk if self._decoder is None else self._decoder.decompress(chunk)

    def lag(self) -> None:
        self.lagged = True

    def finish(self, blocks: bytes) -> None:
        self.wanted += blocks
        self.take(self.subscriber.last(blocks))
        assert self._decoder is None or self._decoder.eof, "not a whole member, or a wrong checksum"

    def check(self) -> None:
        assert self._text == self.wanted
        self.wanted = self._text = b""


class World:
    """A hub whose sweeps are made by hand."""

    def __init__(self, **sse: int) -> None:
        self.clock = HandClock()
        self.telemetry = Telemetry(version="test")
        self.sse = SseSettings.model_validate({"compression_readers": 2, **sse})
        self.hub = Hub(self.sse, self.clock, self.telemetry)
        self.hub.start(Epoch(1, 7), {0: 0})
        self.clients: list[Client] = []
        self.offset = 0
        self.frames: dict[int, bytes] = {}
        self.view = View(ORDERS)
        self.enter(gzip=False)  # one that never leaves

    def enter(self, *, gzip: bool) -> Client:
        client = Client(gzip=gzip)
        self.hub.open(client.subscriber)
        client.wanted += b"opening\n\n"
        client.take(client.subscriber.first(b"opening\n\n"))
        self.rejoin(client)
        self.clients.append(client)
        return client

    def rejoin(self, client: Client) -> None:
        client.lagged = False
        self.hub.join(client.subscriber, ORDERS)
        assert self.hub.go_live(client.subscriber)
        view = client.subscriber.view
        if view is not None and view is not self.view:  # the last one had been forgotten, as nobody was left in it
            self.view, self.frames = view, {}

    def tell(self, client: Client, blocks: bytes) -> None:
        client.wanted += blocks
        client.take(client.subscriber.coded(blocks))

    def publish(self, *texts: bytes) -> None:
        records = [record(self.offset + n, data=text) for n, text in enumerate(texts)]
        self.offset += len(texts)
        first = self.view.end
        self.hub.sink(batch(*records))
        while self.hub._publisher._jobs:
            self.hub._publisher._slice()
        self.frames.update({first + n: frame for n, frame in enumerate(self.view.frames(first, 1 << 40))})

    def give(self, some: list[Client]) -> None:
        """A slice of a sweep."""
        before = {client: client.subscriber.seq for client in some}
        self.hub._sweep_slice(self.view, [client.subscriber for client in some])
        for client, seq in before.items():
            client.wanted += b"".join(self.frames[n] for n in range(seq, client.subscriber.seq))
        if self.clients[0].lagged:
            self.rejoin(self.clients[0])

    def settle(self) -> None:
        while any(c.ready and not c.lagged and c.subscriber.seq < self.view.end for c in self.clients):
            self.give(self.clients)
        self.trim()

    def trim(self) -> None:
        self.view.begin_sweep()
        able = [s.seq for s in self.view.subscribers if s.seq >= self.view.first]
        low = min(able, default=self.view.end)
        self.view.trim(low, max_bytes=self.sse.backlog_bytes)

    def end(self, client: Client) -> None:
        self.clients.remove(client)
        before = client.wanted
        self.hub.say_bye(client.subscriber, "rotate")
        assert client.wanted != before
        client.check()

    def form(self, client: Client) -> int:
        return client.subscriber.form & (STORED | DEFLATED)

    def value(self, name: str) -> float:
        text = self.telemetry.render()[0].decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


# --- the pieces ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MAX_STORED, MAX_STORED + 1, 3 * MAX_STORED + 5])
def test_stored_blocks_hold_the_bytes_as_they_are(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert zlib.decompressobj(-15).decompress(stored(data)) == data


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=200))
def test_an_answer_needs_only_the_difference_to_know_its_checksum(
    before: bytes, own: bytes, shared: bytes, more: bytes
) -> None:
    start = Place(0, 0).after(before)
    body = GzipBody()
    body.add(own)
    body.enter(start)
    place = start.after(shared)
    body.leave(place)
    body.leave(place)
    body.add(more)
    text = own + shared + more
    assert body.trailer()[2:] == zlib.crc32(text).to_bytes(4, "little") + len(text).to_bytes(4, "little")


def test_a_checksum_is_moved_on_by_any_number_of_bytes() -> None:
    crc = zlib.crc32(b"some text")
    moved = moved_on(crc, 5_000_000_000)
    for _ in range(5):
        crc = moved_on(crc, 1_000_000_000)
    assert moved == crc
    assert moved_on(zlib.crc32(b"a"), 70_000) ^ zlib.crc32(bytes(70_000)) == zlib.crc32(b"a" + bytes(70_000))


# --- who gets what ---------------------------------------------------------------------------------


def texts(count: int, seed: int = 1) -> list[bytes]:
    chance = random.Random(seed)
    return [b'{"price":%d,"side":"buy","venue":"paris"}' % chance.randrange(10**6) for _ in range(count)]


def busy(world: World, events: int = 12) -> None:
    """Enough for a compressor."""
    for text in texts(events):
        world.clock.now += 0.1
        world.publish(text)
        world.settle()


def test_each_event_is_deflated_once_and_the_bytes_are_shared() -> None:
    world = World()
    readers = [world.enter(gzip=True) for _ in range(20)]
    busy(world)
    assert world.value("cdrs_sse_gzip_windows ") == 1
    assert {world.form(each) for each in readers} == {DEFLATED}
    count = world.value("cdrs_sse_gzip_events_total ")
    taken = [each.wire for each in readers]
    busy(world, 50)
    assert world.value("cdrs_sse_gzip_events_total ") == count + 50
    assert len({each.wire - was for each, was in zip(readers, taken, strict=True)}) == 1
    plain = sum(len(world.frames[n]) for n in range(world.view.end - 50, world.view.end))
    assert readers[0].wire - taken[0] < plain / 2
    for each in list(readers):
        each.check()
        world.end(each)
    assert world.value("cdrs_sse_gzip_windows ") == 0
    assert world.value("cdrs_sse_gzip_connections ") == 0
    assert world.view.window is None


def test_one_who_joins_is_outside_until_the_next_boundary() -> None:
    world = World()
    readers = [world.enter(gzip=True) for _ in range(20)]
    busy(world)
    late = world.enter(gzip=True)
    busy(world, 1)
    assert world.form(late) == STORED
    forms = []
    for _ in range(100):  # ten seconds
        busy(world, 1)
        forms.append(world.form(late))
    assert forms[0] == STORED
    assert forms[-1] == DEFLATED
    for each in (*readers, late):
        each.check()


def test_one_who_is_behind_at_a_boundary_waits_for_another() -> None:
    world = World()
    for _ in range(20):
        world.enter(gzip=True)
    busy(world)
    late = world.enter(gzip=True)
    late.ready = False
    busy(world, 120)
    late.ready = True
    world.settle()
    assert world.form(late) == STORED
    late.check()
    busy(world, 120)
    assert world.form(late) == DEFLATED
    late.check()


def test_where_many_wait_the_next_boundary_comes_at_once() -> None:
    world = World()
    few = [world.enter(gzip=True) for _ in range(3)]
    busy(world)
    many = [world.enter(gzip=True) for _ in range(50)]
    busy(world, 3)
    assert {world.form(each) for each in (*few, *many)} == {DEFLATED}


@pytest.mark.parametrize("stalled", [0, 10, 60])
def test_those_who_cannot_be_admitted_force_no_boundary_on_the_others(stalled: int) -> None:
    world = World()
    readers = [world.enter(gzip=True) for _ in range(90)]
    busy(world)
    slow = [world.enter(gzip=True) for _ in range(stalled)]
    for each in slow:
        each.ready = False
    window = world.view.window
    assert window is not None
    boundaries = set()
    for text in texts(90):
        world.clock.now += 0.05  # less than a period in all
        world.publish(text)
        world.settle()
        boundaries.add(window._first)
    assert len(boundaries) <= 2, "each takes what all have in common from those inside"
    assert {world.form(each) for each in readers} == {DEFLATED}
    for each in slow:
        each.ready = True
    world.settle()
    busy(world, 15)
    assert {world.form(each) for each in (*readers, *slow)} == {DEFLATED}, "who can be admitted still is, soon"
    for each in (*readers, *slow):
        each.check()


def test_what_goes_to_one_alone_is_sent_outside() -> None:
    world = World()
    readers = [world.enter(gzip=True) for _ in range(20)]
    busy(world)
    world.tell(readers[3], b"for you alone\n\n")
    assert [world.form(each) for each in readers].count(STORED) == 1
    busy(world, 3)
    assert world.form(readers[3]) == STORED
    for each in readers:
        each.check()


def test_a_view_that_falls_quiet_gives_its_compressor_back() -> None:
    world = World()
    readers = [world.enter(gzip=True) for _ in range(3)]
    busy(world)
    for _ in range(3):
        world.clock.now += 30
        world.publish(b"1")
        world.settle()
    assert world.value("cdrs_sse_gzip_windows ") == 0
    assert {world.form(each) for each in readers} == {STORED}
    busy(world, 30)
    assert {world.form(each) for each in readers} == {DEFLATED}
    for each in readers:  # what heartbeats do to a view without any event
        world.tell(each, b"event: cdrs.cursor\n\n")
    assert world.value("cdrs_sse_gzip_windows ") == 0
    for each in readers:
        each.check()


@pytest.mark.parametrize(("readers", "windows", "found"), [(1, 64, 0), (2, 64, 1), (2, 0, 0)])
def test_windows_are_for_views_with_readers_and_bounded(readers: int, windows: int, found: int) -> None:
    world = World(compression_windows=windows)
    for _ in range(readers):
        world.enter(gzip=True)
    busy(world, 30)
    assert world.value("cdrs_sse_gzip_windows ") == found


def test_too_much_at_once_sends_those_inside_to_history() -> None:
    world = World(backlog_bytes=20_000, write_bytes=4096)
    readers = [world.enter(gzip=True) for _ in range(3)]
    busy(world)
    for each in readers:
        each.ready = False
    world.publish(*texts(1000))
    world.give(world.clients)
    world.trim()
    for each in readers:
        each.ready = True
    world.give(world.clients)
    assert all(each.lagged for each in readers)
    for each in readers:
        world.tell(each, b"history\n\n")
        world.rejoin(each)
    busy(world, 30)
    for each in readers:
        each.check()
        world.end(each)


class Readers(RuleBasedStateMachine):
    """Everything that can happen, in any order."""

    @initialize(least=st.integers(1, 4), write=st.sampled_from([4096, 65536]))
    def begin(self, least: int, write: int) -> None:
        self.world = World(compression_readers=least, write_bytes=write, backlog_bytes=16_384)

    def pick(self, number: int) -> Client:
        clients = self.world.clients
        return clients[1:][number % (len(clients) - 1)] if len(clients) > 1 else self.world.enter(gzip=True)

    @rule(gzip=st.sampled_from([True, True, True, False]), count=st.integers(1, 4))
    def somebody_comes(self, gzip: bool, count: int) -> None:
        for _ in range(count):
            self.world.enter(gzip=gzip)

    @rule(count=st.integers(1, 30), seed=st.integers(0, 5), each=st.booleans())
    def events_come(self, count: int, seed: int, each: bool) -> None:
        for text in texts(count, seed):
            self.world.clock.now += 0.05
            self.world.publish(text)
            if each:
                self.world.settle()

    @rule(size=st.integers(1, 80_000))
    def a_large_event_comes(self, size: int) -> None:
        self.world.publish(b'"' + random.Random(size).randbytes(size // 2).hex().encode() + b'"')

    @rule(numbers=st.lists(st.integers(0, 50), max_size=6), trim=st.booleans())
    def some_are_served(self, numbers: list[int], trim: bool) -> None:
        self.world.give(list(dict.fromkeys(self.pick(number) for number in numbers)))
        if trim:
            self.world.trim()

    @rule()
    def all_are_served(self) -> None:
        self.world.settle()

    @rule(seconds=st.floats(0, 40))
    def time_passes(self, seconds: float) -> None:
        self.world.clock.now += seconds

    @rule(number=st.integers(0, 50), ready=st.booleans())
    def one_takes_nothing_or_takes_again(self, number: int, ready: bool) -> None:
        self.pick(number).ready = ready

    @rule(number=st.integers(0, 50), size=st.integers(1, 70_000))
    def one_is_told_something(self, number: int, size: int) -> None:
        self.world.tell(self.pick(number), b"x" * size)

    @rule(number=st.integers(0, 50))
    def one_reads_history(self, number: int) -> None:
        client = self.pick(number)
        self.world.hub.detach(client.subscriber)
        self.world.tell(client, b"history\n\n")
        self.world.rejoin(client)

    @rule(number=st.integers(0, 50))
    def one_is_sent_away(self, number: int) -> None:
        self.world.end(self.pick(number))

    @rule(number=st.integers(0, 50))
    def one_goes(self, number: int) -> None:
        client = self.pick(number)
        self.world.clients.remove(client)
        self.world.hub.close(client.subscriber, "client")

    @invariant()
    def all_have_what_they_should(self) -> None:
        if hasattr(self, "world"):
            for client in self.world.clients:
                client.check()
                if client.lagged:
                    self.world.tell(client, b"history\n\n")
                    self.world.rejoin(client)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            for client in self.world.clients[1:]:
                self.world.end(client)
            assert self.world.value("cdrs_sse_gzip_windows ") == 0
            assert self.world.view.window is None


TestReaders = Readers.TestCase
TestReaders.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
