"""What every `NodeLink` promises: the node object itself, and the same node over HTTP; over each kind of log."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from model_log import ModelLog, ModelStore, event, events

from cdrs.api import NodeApi
from cdrs.node import Node
from cdrs.server import serve
from shared.backends.embedded.log import open_log
from shared.backends.http.link import HttpNodeLink
from shared.clock import SystemClock
from shared.direct import DirectHandoff
from shared.errors import CdrsError, IdempotencyMismatch, InvalidRequest, StaleEpoch, StreamConflict
from shared.ports import EventLog, EventStore, NodeLink
from shared.position import Epoch
from shared.records import FeedBatch, NewEvent, NodeInfo, PageQuery, Settlement
from shared.settings import LogSettings, NodeSettings, Settings

RING = 32
TIMEOUT = 15.0


@dataclass
class World:
    """A node over a log, and a link to it."""

    log: EventLog
    store: EventStore
    node: Node
    link: NodeLink

    @property
    def epoch(self) -> Epoch:
        return self.log.epoch

    async def append(self, partition: int, batch: Sequence[NewEvent]) -> Sequence[Settlement]:
        return await self.link.append(self.epoch, partition, batch, timeout=TIMEOUT)


@asynccontextmanager
async def opened_log(kind: str, folder: Path) -> AsyncIterator[tuple[EventLog, EventStore]]:
    if kind == "embedded":
        async with open_log(folder, LogSettings(partitions=3), SystemClock()) as (log, store):
            yield log, store
    else:
        model = ModelLog(decides_identity=False)
        yield model, ModelStore(model)


@asynccontextmanager
async def running(work: Callable[[], object]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work())  # type: ignore[arg-type]
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@asynccontextmanager
async def served(node: Node) -> AsyncIterator[str]:
    sock = socket.create_server(("127.0.0.1", 0))
    started = asyncio.Event()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    async with running(lambda: serve(NodeApi(node), sock, on_started=started.set, on_stop=node.stop)):
        await asyncio.wait_for(started.wait(), TIMEOUT)
        yield url


@pytest.fixture(params=["embedded", "judged"])
def log_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["in process", "http"])
async def world(request: pytest.FixtureRequest, log_kind: str, tmp_path: Path) -> AsyncIterator[World]:
    settings = Settings(node=NodeSettings(ring_records=RING, window=64))
    async with AsyncExitStack() as stack:
        log, store = await stack.enter_async_context(opened_log(log_kind, tmp_path))
        node = Node(log, store, settings, SystemClock(), node_id="n1", incarnation="i1")
        await stack.enter_async_context(running(node.run))
        assert await node.ready(TIMEOUT)
        link: NodeLink = node
        if request.param == "http":
            link = HttpNodeLink(await stack.enter_async_context(served(node)))
            stack.push_async_callback(link.close)
        yield World(log, store, node, link)


async def follow(world: World, positions: dict[int, int], *, until: dict[int, int]) -> list[FeedBatch]:
    """Read the feed until it has reached these offsets."""
    batches: list[FeedBatch] = []
    next_offsets = dict(positions)
    async with asyncio.timeout(20), world.link.feed(world.epoch, positions) as feed:
        async for batch in feed:
            assert batch.start == next_offsets[batch.partition], "a gap or an overlap"
            assert all(batch.start <= record.offset < batch.next for record in batch.records)
            next_offsets[batch.partition] = batch.next
            batches.append(batch)
            if all(next_offsets[partition] >= offset for partition, offset in until.items()):
                break
    return batches


def values(batches: Sequence[FeedBatch], partition: int) -> list[bytes]:
    return [record.value for batch in batches if batch.partition == partition for record in batch.records]


# --- handoff --------------------------------------------------------------------------------------


async def test_events_are_settled_in_order_where_they_stand(world: World) -> None:
    sent = events(range(10))
    settled = await world.append(1, sent)
    assert [s.offset for s in settled] == sorted(s.offset for s in settled)
    assert {(s.partition, s.duplicate, s.problem) for s in settled} == {(1, False, "")}
    found = [await world.link.append_time(1, s.offset) for s in settled]
    assert found == [s.append_ms for s in settled]


async def test_the_same_handoff_again_is_answered_with_the_same_places(world: World) -> None:
    sent = events(range(5))
    first = await world.append(0, sent)
    again = await world.append(0, sent)
    assert [(s.partition, s.offset, s.append_ms) for s in again] == [
        (s.partition, s.offset, s.append_ms) for s in first
    ]
    assert all(s.duplicate for s in again)
    assert len(values(await follow(world, {0: 0}, until={0: (await world.link.ends())[0]}), 0)) == 5


async def test_a_known_identity_with_another_body_or_key_is_refused(world: World) -> None:
    await world.append(0, [event(1), event(2)])
    settled = await world.append(0, [event(1, data=b'"other"'), event(2, key="k"), event(3)])
    assert [s.problem for s in settled] == [IdempotencyMismatch.problem] * 2 + [""]
    assert settled[2].duplicate is False


async def test_one_identity_twice_in_a_handoff_is_stored_once(world: World) -> None:
    settled = await world.append(0, [event(1), event(2), event(1), event(1, data=b'"x"')])
    assert settled[2] == Settlement(0, settled[0].offset, settled[0].append_ms, duplicate=True)
    assert settled[3].problem == IdempotencyMismatch.problem
    ends = await world.link.ends()
    assert len(values(await follow(world, {0: 0}, until={0: ends[0]}), 0)) == 2


async def test_equal_handoffs_at_once_get_the_same_places(world: World) -> None:
    sent = events(range(20))
    answers = await asyncio.gather(*(world.append(0, sent) for _ in range(5)))
    assert len({tuple(s.offset for s in answer) for answer in answers}) == 1


async def test_handoffs_keep_the_order_in_which_they_came(world: World) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(0, 60, 2):
            group.create_task(world.append(2, events([number, number + 1])))
            await asyncio.sleep(0 if world.link is world.node else 0.02)
    ends = await world.link.ends()
    seen = values(await follow(world, {2: 0}, until={2: ends[2]}), 2)
    assert seen == [e.value for e in events(range(60))]


async def test_an_empty_handoff_settles_nothing(world: World) -> None:
    assert list(await world.append(0, [])) == []


async def test_another_epoch_is_refused(world: World) -> None:
    other = Epoch(world.epoch.ordinal, world.epoch.random ^ 1)
    with pytest.raises(StaleEpoch):
        await world.link.append(other, 0, events([1]), timeout=TIMEOUT)
    with pytest.raises(StaleEpoch):
        async with world.link.feed(other, {0: 0}):
            pass


async def test_a_partition_that_does_not_exist_is_refused(world: World) -> None:
    with pytest.raises(InvalidRequest):
        await world.append(3, events([1]))
    with pytest.raises(InvalidRequest):
        async with world.link.feed(world.epoch, {3: 0}):
            pass
    with pytest.raises(InvalidRequest):
        await world.link.page(PageQuery(3, 0, 1, 1, 1))


async def test_an_event_that_nobody_routed_is_refused(world: World) -> None:
    """The spread it comes with would be that of a new stream, for good."""
    with pytest.raises(InvalidRequest, match="spread"):
        await world.append(0, [msgspec.structs.replace(event(1), spread=0)])


async def test_a_large_handoff_is_one(world: World) -> None:
    sent = [event(number, data=b'"' + b"x" * 4000 + b'"') for number in range(1000)]
    settled = await world.append(0, sent)
    assert [s.offset for s in settled] == list(range(settled[0].offset, settled[0].offset + 1000))


async def handed_over(
    world: World, *handoffs: tuple[int, Sequence[NewEvent]]
) -> list[Sequence[Settlement] | CdrsError]:
    """What each is answered with, all in one call."""
    assert isinstance(world.link, DirectHandoff)
    answers: list[asyncio.Future[Sequence[Settlement] | CdrsError]] = [asyncio.Future() for _ in handoffs]
    together = [
        (partition, batch, answer.set_result) for (partition, batch), answer in zip(handoffs, answers, strict=True)
    ]
    world.link.hand_over(world.epoch, together, timeout=TIMEOUT)
    return [await asyncio.wait_for(answer, TIMEOUT) for answer in answers]


async def test_handoffs_of_several_partitions_go_together_and_each_is_answered_for_itself(world: World) -> None:
    two = await handed_over(world, (2, events(range(3))), (0, events(range(3, 5))))
    assert [[s.partition for s in settled] for settled in two if not isinstance(settled, CdrsError)] == [
        [2] * 3,
        [0] * 2,
    ]
    again, nothing, refused, fresh = await handed_over(
        world, (2, events(range(3))), (1, []), (3, events([7])), (1, events([8]))
    )
    assert not isinstance(again, CdrsError)
    assert [s.duplicate for s in again] == [True] * 3
    assert not isinstance(nothing, CdrsError)
    assert list(nothing) == []
    assert isinstance(refused, InvalidRequest), "its neighbours are stored all the same"
    assert not isinstance(fresh, CdrsError)
    assert [(s.partition, s.duplicate) for s in fresh] == [(1, False)]


async def test_handoffs_that_go_together_to_another_epoch_are_refused_each(world: World) -> None:
    assert isinstance(world.link, DirectHandoff)
    other, answers = Epoch(world.epoch.ordinal, world.epoch.random ^ 1), list[object]()
    world.link.hand_over(other, [(p, events([p]), answers.append) for p in range(3)], timeout=TIMEOUT)
    async with asyncio.timeout(TIMEOUT):
        while len(answers) < 3:
            await asyncio.sleep(0.005)
    assert [type(answer) for answer in answers] == [StaleEpoch] * 3


# --- feed -----------------------------------------------------------------------------------------


async def test_a_feed_gives_each_visible_record_once_from_any_position(world: World) -> None:
    sent = events(range(5 * RING))
    for at in range(0, len(sent), 16):
        await world.append(0, sent[at : at + 16])
    end = (await world.link.ends())[0]
    for start in (0, 1, 3 * RING, end - RING - 1, end - RING, end - 1, end):
        seen = values(await follow(world, {0: start}, until={0: end}), 0)
        assert seen == [e.value for e in sent[start:]], f"from {start}"


async def test_a_feed_below_the_ring_misses_nothing_of_what_is_appended_meanwhile(world: World) -> None:
    sent = events(range(8 * RING))
    half = len(sent) // 2
    for at in range(0, half, 32):
        await world.append(0, sent[at : at + 32])

    async def go_on() -> None:
        for at in range(half, len(sent), 8):
            await world.append(0, sent[at : at + 8])

    async with asyncio.TaskGroup() as group:
        group.create_task(go_on())
        batches = await follow(world, {0: 0}, until={0: len(sent)})
    assert values(batches, 0) == [e.value for e in sent]


async def test_a_feed_of_several_partitions_starves_none(world: World) -> None:
    for partition in range(3):
        await world.append(partition, events(range(partition * 100, partition * 100 + 50), stream=f"s{partition}"))
    ends = dict(await world.link.ends())
    batches = await follow(world, dict.fromkeys(range(3), 0), until=ends)
    for partition in range(3):
        assert len(values(batches, partition)) == 50


async def test_live_records_are_whole(world: World) -> None:
    async with asyncio.timeout(TIMEOUT), world.link.feed(world.epoch, {1: 0}) as feed:
        sent = event("a", key="clé", data='"☃"'.encode())
        (settled,) = await world.append(1, [sent])
        async for batch in feed:
            if batch.records:
                break
    (record,) = batch.records
    assert (record.offset, record.append_ms) == (settled.offset, settled.append_ms)
    assert (record.identity, record.stream, record.key, record.value) == (
        sent.identity,
        sent.stream,
        "clé",
        sent.value,
    )
    assert (record.data_at, record.kind, record.partition) == (sent.data_at, sent.kind, 1)


async def test_a_quiet_feed_beats_without_moving(world: World) -> None:
    async with asyncio.timeout(TIMEOUT), world.link.feed(world.epoch, {0: 0, 2: 0}) as feed:
        first = await anext(feed)
        second = await anext(feed)
    assert [(b.start, b.next, b.records) for b in (first, second)] == [(0, 0, [])] * 2


async def test_a_position_ahead_of_the_log_waits_for_it(world: World) -> None:
    async with asyncio.timeout(TIMEOUT), world.link.feed(world.epoch, {0: 2}) as feed:
        await world.append(0, events(range(4)))
        async for batch in feed:
            assert batch.start >= 2
            if batch.records:
                break
    assert [record.value for record in batch.records] == [e.value for e in events([2, 3])]


async def test_a_slow_reader_gets_everything_later(world: World) -> None:
    async with asyncio.timeout(20), world.link.feed(world.epoch, {0: 0}) as feed:
        sent = events(range(6 * RING))
        for at in range(0, len(sent), 8):
            await world.append(0, sent[at : at + 8])
        seen: list[bytes] = []
        async for batch in feed:
            seen += [record.value for record in batch.records]
            if batch.next == len(sent):
                break
    assert seen == [e.value for e in sent]


async def test_many_feeds_see_the_same(world: World) -> None:
    async with asyncio.TaskGroup() as group:
        feeds = [group.create_task(follow(world, {0: 0}, until={0: 40})) for _ in range(5)]
        for at in range(0, 40, 4):
            await world.append(0, events(range(at, at + 4)))
    assert {tuple(values(feed.result(), 0)) for feed in feeds} == {tuple(e.value for e in events(range(40)))}


async def test_leaving_a_feed_frees_it(world: World) -> None:
    async with world.link.feed(world.epoch, {0: 0}):
        async with asyncio.timeout(TIMEOUT):
            while world.node.load().connections != 1:
                await asyncio.sleep(0.01)
    async with asyncio.timeout(TIMEOUT):
        while world.node.load().connections:
            await asyncio.sleep(0.01)


# --- history --------------------------------------------------------------------------------------


async def test_who_answers(world: World) -> None:
    assert await world.link.info() == NodeInfo("n1", "i1", world.epoch, 3)
    assert dict(await world.link.ends()) == {0: 0, 1: 0, 2: 0}
    await world.append(1, events([1]))
    assert dict(await world.link.ends()) == {0: 0, 1: 1, 2: 0}
    assert dict(await world.link.starts()) == {0: 0, 1: 0, 2: 0}


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("streams", [None, ["a"], ["a", "b"]])
async def test_pages_put_together_are_the_whole(world: World, backwards: bool, streams: list[str] | None) -> None:
    sent = [event(number, stream="abc"[number % 3]) for number in range(3 * RING)]
    await world.append(0, sent)
    expected = [e.value for e in sent if streams is None or e.stream in streams]
    start, stop, seen = 0, len(sent), []
    while start < stop:
        page = await world.link.page(PageQuery(0, start, stop, 7, 2**20, streams, backwards))
        assert len(page.records) <= 7
        seen += [record.value for record in page.records]
        if backwards:
            assert page.next < stop
            stop = page.next
        else:
            assert page.next > start
            start = page.next
    assert seen == (expected[::-1] if backwards else expected)


async def test_a_page_is_bounded_by_bytes_too(world: World) -> None:
    await world.append(0, [event(number, data=b'"' + b"x" * 1000 + b'"') for number in range(10)])
    page = await world.link.page(PageQuery(0, 0, 10, 10, 2500))
    assert (len(page.records), page.next) == (3, 3)


async def test_one_event_is_found_by_its_id(world: World) -> None:
    await world.append(0, [event("a"), event("b")])
    (record,) = await world.link.find("orders", "b", "/test")
    assert record.value == event("b").value
    assert len(await world.link.find("orders", "b", None)) == 1
    assert list(await world.link.find("orders", "b", "/else")) == []
    assert list(await world.link.find("others", "b", None)) == []


async def test_times_lead_to_offsets(world: World) -> None:
    settled = await world.append(0, events(range(5)))
    times = [s.append_ms for s in settled]
    offsets = await world.link.offset_at(times[2])
    assert offsets[0] == times.index(times[2])
    assert (await world.link.offset_at(times[-1] + 1))[0] == 5
    assert await world.link.append_time(0, 10) == times[-1]
    assert await world.link.append_time(1, 0) is None


async def test_streams_are_made_and_listed(world: World) -> None:
    made = await world.link.create_stream("wide", spread=2)
    assert (made.name, made.spread) == ("wide", 2)
    await world.link.create_stream("able", spread=1)
    assert (await world.link.stream("wide")) == made
    assert await world.link.stream("unknown") is None
    assert [info.name for info in await world.link.streams(after="", limit=10)] == ["able", "wide"]
    assert [info.name for info in await world.link.streams(after="able", limit=10)] == ["wide"]


async def test_errors_keep_their_class(world: World, log_kind: str) -> None:
    if log_kind != "embedded":
        pytest.skip("the model takes any spread")
    await world.link.create_stream("s", spread=2)
    with pytest.raises(StreamConflict) as caught:
        await world.link.create_stream("s", spread=3)
    assert isinstance(caught.value, CdrsError)


async def test_close_is_idempotent(world: World) -> None:
    await world.link.close()
    await world.link.close()
