"""From the feed into the views: bounded work for a turn of the loop, and whatever happens between two pieces of it,
everybody is given each event once, in order, and never told to be further than that."""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import AbstractAsyncContextManager

import pytest
from running_hub import running_hub
from sample_records import batch, record

from gateway import publishing
from gateway.hub import Hub
from gateway.publishing import RUN, STEPS
from gateway.subscriber import Subscriber
from gateway.views import Selection
from shared.clock import SystemClock
from shared.events import attributes_of
from shared.filters import parse_filter
from shared.position import Cursor, CursorWriter, Epoch
from shared.records import FeedBatch, Record
from shared.sse import DEFAULT_SHAPE, Shape

EPOCH = Epoch(1, 7)
EVENT = re.compile(rb'"id":"(\d)-(\d+)"')


class Still(SystemClock):
    """Nobody ever takes any time, so that each slice is followed by a turn of the others."""

    def monotonic(self) -> float:
        return 0.0


class Reader:
    """A subscription: which events it has been given. What its cursor leaves out it reads as history."""

    def __init__(self, hub: Hub, asked: Selection) -> None:
        self.ready = True
        self.lagged = False
        self.chunks: list[bytes] = []
        self.start: dict[int, int] | None = None
        self.given: list[tuple[int, int]] = []
        self.asked = asked
        self.subscriber = Subscriber(self, b"", remote="", now=0, expires=1e12)
        self._hub = hub
        hub.open(self.subscriber)

    def join(self, log: dict[int, list[Record]]) -> None:
        self.lagged = False
        target = self._hub.join(self.subscriber, self.asked)
        assert self._hub.go_live(self.subscriber)
        target = {partition: target[partition] for partition in self.asked.partitions}
        if self.start is None:
            self.start = target
        else:
            known = Cursor.decode(self.subscriber.cursor.decode()).next
            for partition, stop in target.items():
                missed = wanted(self.asked, log, partition, known[partition])
                self.given += [event for event in missed if event[1] < stop]
        self.subscriber.cursor = CursorWriter(EPOCH, target).bytes()

    def write(self, chunk: bytes, /) -> None:
        assert self.ready
        self.chunks.append(chunk)
        self.given += [(int(partition), int(offset)) for partition, offset in EVENT.findall(chunk)]

    def lag(self) -> None:
        self.lagged = True

    def finish(self, _: bytes) -> None:
        raise AssertionError("nobody is sent away here")


def wanted(asked: Selection, log: dict[int, list[Record]], partition: int, start: int) -> list[tuple[int, int]]:
    return [
        (partition, each.offset)
        for each in log[partition][start:]
        if asked.matches_stream(each.stream) and (asked.filter is None or asked.filter.matches(attributes_of(each)))
    ]


def selection(
    *streams: str, patterns: tuple[str, ...] = (), text: str = "[]", vector: bool = False, shape: Shape = DEFAULT_SHAPE
) -> Selection:
    partitions = (0, 1) if vector else (0,)
    return Selection(tuple(sorted(streams)), patterns, parse_filter(text), shape, partitions, vector)


def running(**settings: float) -> AbstractAsyncContextManager[Hub]:
    return running_hub(EPOCH, Still(), **settings)


async def fed(hub: Hub, some: FeedBatch) -> None:
    """As a feed does it."""
    pause = hub.sink(some)
    if pause is not None:
        await pause()


def entered(hub: Hub, asked: Selection) -> Reader:
    reader = Reader(hub, asked)
    reader.join({0: [], 1: []})
    return reader


@pytest.mark.parametrize("text", ["[]", '[{"exact":{"type":"edit"}}]', '[{"prefix":{"type":"ed"}}]'])
async def test_a_burst_into_many_views_leaves_the_others_their_turns(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each client has a stream of its own beside the common one, and so a view of its own."""
    monkeypatch.setattr(publishing, "STEPS", 100)
    clients, events = 400, 40
    async with running() as hub:
        readers = [entered(hub, selection("all", f"me.{n}", text=text)) for n in range(clients)]
        for reader in readers:
            reader.ready = False  # their views keep what they are given
        views = [reader.subscriber.view for reader in readers]
        feeding = asyncio.create_task(fed(hub, batch(*[record(n, stream="all") for n in range(events)])))
        ends, turns = [0] * clients, 0
        while not feeding.done():
            await asyncio.sleep(0)
            now = [view.end for view in views if view is not None]
            given = sum(is_now != was for is_now, was in zip(now, ends, strict=True))
            assert given <= 100, "views that were given something in one turn"
            ends, turns = now, turns + (given > 0)
        assert ends == [events] * clients
        assert turns >= clients // 100


async def test_a_view_is_given_a_burst_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an event costs for each of many views is what a run costs, divided by its events."""
    async with running() as hub:
        readers = [entered(hub, selection("all", f"me.{n}")) for n in range(3)]
        view = readers[0].subscriber.view
        assert view is not None
        gifts, extend = 0, type(view).extend

        def counted(*args: object) -> None:
            nonlocal gifts
            gifts += 1
            extend(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(type(view), "extend", counted)
        await fed(hub, batch(*[record(n, stream="all") for n in range(512)]))
        assert gifts == len(readers) * 512 // RUN
        for _ in range(50):
            await asyncio.sleep(0)
        assert all(reader.given == [(0, n) for n in range(512)] for reader in readers)


async def test_small_batches_in_a_row_have_a_turn_of_the_others_between_them() -> None:
    async with running() as hub:
        entered(hub, selection("orders"))
        pauses = [hub.sink(batch(record(n))) for n in range(STEPS)]
        assert pauses[0] is None
        assert pauses[-1] is not None, "a feed whose socket holds many would have the loop for itself"
        await pauses[-1]()
        assert hub.sink(batch(record(STEPS))) is None


async def test_what_comes_while_a_batch_is_published_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "STEPS", 3)
    monkeypatch.setattr(publishing, "RUN", 2)
    async with running() as hub:
        reader = entered(hub, selection(patterns=(">",), vector=True))
        hub.sink(batch(*[record(n) for n in range(20)]))
        hub.sink(FeedBatch(1, 0, 5, [record(4, partition=1)], [(0, 2)]))
        pause = hub.sink(batch(record(20)))
        assert hub.vector.next[0] < 20, "nobody is told to be further than what is published"
        assert hub.rings[0].next == 21
        assert pause is not None
        await pause()
        assert hub.vector.next == {0: 21, 1: 5}
        for _ in range(50):
            await asyncio.sleep(0)
        assert reader.given == [*[(0, n) for n in range(20)], (1, 4), (0, 20)]
        text = b"".join(reader.chunks)
        assert text.index(b'"0-19"') < text.index(b"cdrs.gap") < text.index(b'"1-4"'), "the gap in its place"


STREAMS = [["a", "a", "a", "a", "b", "me.1", "c"], ["x", "x", "x", "me.2"]]
"""Of each partition; the same one comes several times in a row."""
SELECTIONS = [
    selection("a"),
    selection("b", "me.1"),
    selection("a", "x", patterns=("*",), vector=True),
    selection(patterns=(">",), vector=True),
    selection("a", shape=Shape(named=True)),
    selection("a", text='[{"exact":{"type":"edit"}}]'),
    selection("a", patterns=("*", ">"), text='[{"exact":{"type":"edit"}}]', vector=True),
    selection("a", text='[{"not":{"exact":{"type":"edit"}}}]'),
    selection(patterns=("me.>",), text='[{"prefix":{"type":"e"}}]', vector=True),
]


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_in_between_everybody_gets_each_event_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr(publishing, "STEPS", dice.choice([1, 3, 8]))
    monkeypatch.setattr(publishing, "RUN", dice.choice([1, 2, 5]))
    log: dict[int, list[Record]] = {0: [], 1: []}
    readers: list[Reader] = []
    owing = 0
    async with running(backlog_bytes=4096) as hub:

        async def feed(partition: int) -> None:
            for _ in range(60):
                first = len(log[partition])
                for _ in range(dice.randint(1, 12)):
                    stream = dice.choice(STREAMS[partition])
                    kind = dice.choice(["edit", "edit", "view"])
                    log[partition].append(record(len(log[partition]), partition=partition, stream=stream, type=kind))
                await fed(hub, batch(*log[partition][first:], partition=partition))
                await asyncio.sleep(0)

        def something_happens() -> None:
            nonlocal owing
            owing += bool(hub._publisher._owed)
            act = dice.random()
            if act < 0.25 or not readers:
                readers.append(reader := Reader(hub, dice.choice(SELECTIONS)))
                reader.join(log)
                return
            reader = dice.choice(readers)
            if act < 0.35:
                readers.remove(reader)
                hub.close(reader.subscriber, "client")
            elif act < 0.5:
                hub.detach(reader.subscriber)
                reader.join(log)
            elif act < 0.75:
                reader.subscriber.wrote = -1e9
                hub._heartbeats._visit(reader.subscriber, 1.0, {})  # a heartbeat, which tells where it stands
            else:
                reader.ready = not reader.ready
                hub.service(reader.subscriber)

        feeding = asyncio.gather(*map(feed, log))
        while not feeding.done():
            something_happens()
            await asyncio.sleep(0)
            for reader in readers:
                if reader.lagged:
                    reader.join(log)
        await feeding
        for _ in range(100):
            for reader in readers:
                reader.ready = True
                hub.service(reader.subscriber)
                if reader.lagged:
                    reader.join(log)
            await asyncio.sleep(0)
        assert hub.vector.next == {partition: len(records) for partition, records in log.items()}
    assert owing > 10, "nothing was interrupted"
    for reader in readers:
        assert reader.start is not None
        for partition, start in reader.start.items():
            got = [event for event in reader.given if event[0] == partition]
            assert got == wanted(reader.asked, log, partition, start), reader.asked
