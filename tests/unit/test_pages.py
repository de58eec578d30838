"""A page that is written in pieces, as its client takes them."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
from hand_clock import HandClock

from gateway import pages
from gateway.pages import Page
from gateway.starts import Start
from gateway.views import Selection
from shared.errors import Unavailable
from shared.position import Epoch
from shared.records import HistoryPage, PageQuery, Record
from shared.sse import Shape

STOP = 1000
VALUE = b'{"data":"%s"}' % (b"x" * 400)


class Held(list[Record]):
    """Records that were read; it can be seen whether somebody has them still."""


class History:
    """Two partitions, as `HistoryReader` has them."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.fails_from = STOP
        """The first offset that nobody answers for."""
        self.took = 0.0
        """Seconds that a question takes."""
        self.turns = 0
        self.asked: list[int] = []
        self.read: list[weakref.ref[Held]] = []

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        self.turns += 1
        try:
            yield
        finally:
            self.turns -= 1

    async def page(self, query: PageQuery) -> HistoryPage:
        assert self.turns == 1
        self.asked.append(query.max_bytes)
        self.clock.now += self.took
        await asyncio.sleep(0)
        if query.start >= self.fails_from:
            raise Unavailable("nobody is there")
        stop = min(query.stop, self.fails_from)
        count = min(query.limit, query.max_bytes // len(VALUE) + 1, stop - query.start)
        of, first = query.partition, query.start
        found = Held(Record(of, n, 2 * n + of, b"i", "a", None, VALUE, 0, 1, 0) for n in range(first, first + count))
        self.read.append(weakref.ref(found))
        return HistoryPage(found, first + count)

    def held(self) -> int:
        return sum(each() is not None for each in self.read)


class Client:
    """Of `gateway.watched.WatchedProtocol`, what a page sees."""

    is_taken = True

    def __init__(self, clock: HandClock, waits: float = 0.0) -> None:
        self.clock = clock
        self.waits = waits

    async def taken(self) -> None:
        self.clock.now += self.waits


class World:
    def __init__(self) -> None:
        self.clock = HandClock()
        self.history = History(self.clock)
        self.client = Client(self.clock)

    def page(self, pattern: str = ">") -> Page:
        context = SimpleNamespace(router=SimpleNamespace(epoch=Epoch(1, 7)), history=self.history, clock=self.clock)
        selection = Selection((), (pattern,), None, Shape(), (0, 1), True)
        return Page(cast("Any", context), selection, Start({0: 0, 1: 0}), {0: STOP, 1: STOP}, 1000)

    def pieces(self, page: Page) -> AsyncGenerator[bytes]:
        return page.pieces(cast("Any", self.client))


async def rest(pieces: AsyncGenerator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


@pytest.mark.parametrize("is_taken", [True, False])
async def test_all_of_it_comes_once_and_in_order(is_taken: bool) -> None:
    world = World()
    world.client.is_taken = is_taken
    sizes: list[int] = []
    body = b""
    async for piece in world.pieces(world.page()):
        body += piece
        sizes.append(len(piece))
    document = orjson.loads(body)
    assert len(document["events"]) == 1000
    assert max(sizes) < 2 * pages.PIECE
    assert not document["at_end"]
    assert len({item["cursor"] for item in document["events"]}) == 1000


async def test_while_its_client_takes_nothing_nothing_is_held_of_it() -> None:
    world = World()
    pieces = world.pieces(world.page())
    gc.collect()
    gc.disable()
    try:
        await anext(pieces)
        assert not world.history.turns, "its head may have to wait"
        await anext(pieces)
        assert world.history.turns
        assert world.history.held()
        world.client.is_taken = False
        waiting = asyncio.create_task(anext(pieces))
        world.client.taken = asyncio.Event().wait  # type: ignore[assignment,method-assign]
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
        assert not world.history.turns
        assert not world.history.held()
        waiting.cancel()
        await asyncio.wait([waiting])
    finally:
        gc.enable()


async def test_more_is_read_at_once_for_who_takes_it() -> None:
    world = World()
    await rest(world.pieces(world.page()))
    eager = list(world.history.asked)
    assert eager[:2] == [pages.PIECE // 2] * 2, "of both"
    assert max(eager) > 4 * pages.PIECE
    assert eager == sorted(eager)
    world.history.asked.clear()
    world.client.is_taken = False
    await rest(world.pieces(world.page()))
    assert set(world.history.asked) == {pages.PIECE // 2}


async def test_more_is_read_at_once_where_nothing_of_it_is_wanted() -> None:
    world = World()
    world.client.is_taken = False
    document = orjson.loads(await rest(world.pieces(world.page("none"))))
    assert document["events"] == []
    assert document["at_end"]
    assert max(world.history.asked) > 4 * pages.PIECE


async def test_what_goes_wrong_behind_the_first_piece_ends_it_there() -> None:
    world = World()
    world.history.fails_from = 250
    pieces = world.pieces(world.page())
    document = orjson.loads(await rest(pieces))
    assert 0 < len(document["events"]) < 1000
    assert document["next"] == document["events"][-1]["cursor"]
    assert not document["at_end"]


async def test_what_goes_wrong_before_is_an_answer_of_its_own() -> None:
    world = World()
    world.history.fails_from = 0
    with pytest.raises(Unavailable):
        await anext(world.pieces(world.page()))
    assert not world.history.turns


async def test_time_spent_on_the_client_is_not_the_pages() -> None:
    world = World()
    world.client.is_taken = False
    world.client.waits = pages.MAX_SECONDS * 2
    assert len(orjson.loads(await rest(world.pieces(world.page())))["events"]) == 1000
    world.history.took = pages.MAX_SECONDS / 4
    assert 0 < len(orjson.loads(await rest(world.pieces(world.page())))["events"]) < 1000
