"""A node over a log that does not decide identity: look-ups, void records, and history in two tiers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec
import pytest
from model_log import ModelLog, ModelStore, event, events
from node_world import RING, TIMEOUT, WINDOW, read_feed, running_node, until

from shared.errors import IdempotencyMismatch, OutcomeUnknown, Unavailable
from shared.records import Duplicate, NewEvent, PageQuery, Record


@pytest.fixture
def judged_log() -> ModelLog:
    return ModelLog(decides_identity=False, window=WINDOW)


async def test_a_void_record_is_looked_up_and_appended_again_in_order(judged_log: ModelLog) -> None:
    """Scenario 1: the node is stopped on its way into the log while others write more than W records."""
    log = judged_log
    async with running_node(log) as node:
        log.open_for_appends.clear()
        task = asyncio.ensure_future(node.append(log.epoch, 0, events(range(4)), timeout=TIMEOUT))
        await until(lambda: log.begun == 1)
        for number in range(WINDOW - 1):
            log.write(0, event(f"other {number}"), base=len(log.records[0]))
        log.open_for_appends.set()
        settled = await task
    # The first two still lay within the window of their look-up.
    assert [s.offset for s in settled] == [WINDOW - 1, WINDOW, WINDOW + 3, WINDOW + 4]
    ours = {e.value for e in events(range(4))}
    assert [r.value for r in log.visible(0) if r.value in ours] == [e.value for e in events(range(4))]


async def test_the_same_event_through_two_nodes_at_once_is_visible_once(judged_log: ModelLog) -> None:
    log = judged_log
    async with running_node(log) as one, running_node(log) as two:
        log.open_for_appends.clear()
        tasks = [
            asyncio.ensure_future(node.append(log.epoch, 0, events(range(10)), timeout=TIMEOUT)) for node in (one, two)
        ]
        await until(lambda: log.begun == 2)
        log.open_for_appends.set()
        answers = await asyncio.gather(*tasks)
        assert [s.offset for s in answers[0]] == [s.offset for s in answers[1]] == list(range(10))
        assert [[s.duplicate for s in answer] for answer in answers] == [[False] * 10, [True] * 10]
        assert len(log.records[0]) == 20
        assert await read_feed(one, log, 20) == await read_feed(two, log, 20) == [e.value for e in events(range(10))]


async def test_an_identity_older_than_the_index_is_found_in_the_store(judged_log: ModelLog) -> None:
    log = judged_log
    log.write(0, event("old"), base=0)
    for number in range(3 * WINDOW):
        log.write(0, event(number), base=number)
    async with running_node(log) as node:
        settled = await node.append(log.epoch, 0, [event("old"), event("old", data=b"1")], timeout=TIMEOUT)
        assert (settled[0].offset, settled[0].duplicate) == (0, True)
        assert settled[1].problem == IdempotencyMismatch.problem
        (fresh,) = await node.append(log.epoch, 0, [event("new", fresh=True)], timeout=TIMEOUT)
        assert fresh.offset == 3 * WINDOW + 1


@pytest.mark.parametrize("older", [0, 3 * WINDOW], ids=["in the index", "in the store"])
async def test_copies_in_one_batch_are_compared_with_what_is_stored(judged_log: ModelLog, older: int) -> None:
    """Of two bodies in one batch the first one loses, as another node has stored the second: its sender is told that it
    is there, and not that another body is."""
    log = judged_log
    log.write(0, event("x", data=b"2"), base=0)
    for number in range(older):
        log.write(0, event(number), base=number)
    bodies = [b"1", b"2", b"1", b"3", b"2", *(b"%d" % number for number in range(10, 30)), b"2"]
    async with running_node(log) as node:
        settled = await node.append(log.epoch, 0, [event("x", data=body) for body in bodies], timeout=TIMEOUT)
    for body, each in zip(bodies, settled, strict=True):
        if body == b"2":
            assert (each.offset, each.duplicate, each.problem) == (0, True, ""), each
        else:
            assert each.problem == IdempotencyMismatch.problem


class CountingStore(ModelStore):
    """Answers so many questions and is away then."""

    asked = 0
    answers = 1_000_000

    async def lookup(self, partition: int, events: Sequence[NewEvent]) -> Mapping[bytes, Duplicate]:
        self.asked += 1
        if self.asked > self.answers:
            raise Unavailable("away")
        assert len({each.identity for each in events}) == len(events)
        return await super().lookup(partition, events)


def written_before(log: ModelLog, count: int) -> None:
    """So many events, all beyond the index."""
    for number in range(count):
        log.write(0, event(f"old {number}", data=b"stored"), base=number)
    for number in range(3 * WINDOW):
        log.write(0, event(number), base=count + number)


async def test_losing_copies_are_compared_together(judged_log: ModelLog) -> None:
    written_before(judged_log, 10)
    store = CountingStore(judged_log)
    bodies = [b"1", b"2", b"stored"]
    asked = [event(f"old {number}", data=body) for number in range(10) for body in bodies]
    async with running_node(judged_log, store) as node:
        settled = await node.append(judged_log.epoch, 0, asked, timeout=TIMEOUT)
    for each, settlement in zip(asked, settled, strict=True):
        assert settlement.problem == ("" if b"stored" in each.value else IdempotencyMismatch.problem)
    assert store.asked == 3, "one question for the first of each, and one for each further body"


async def test_a_store_that_leaves_meanwhile_costs_only_the_losing_copies(judged_log: ModelLog) -> None:
    written_before(judged_log, 1)
    store = CountingStore(judged_log)
    store.answers = 1
    asked = [event("new"), event("old 0", data=b"1"), event("old 0", data=b"stored"), event("old 0", data=b"1")]
    async with running_node(judged_log, store) as node:
        settled = await node.append(judged_log.epoch, 0, asked, timeout=TIMEOUT)
    assert (settled[0].problem, settled[0].duplicate) == ("", False)
    mismatch = IdempotencyMismatch.problem
    assert [each.problem for each in settled[1:]] == [mismatch, OutcomeUnknown.problem, mismatch]


async def test_a_copy_of_what_only_the_store_could_compare_costs_nobody_else(judged_log: ModelLog) -> None:
    """The node has read of it that it is a record, but not whether it is the first of its identity."""
    for number in range(3 * WINDOW):
        judged_log.write(0, event(number), base=number)
    store = CountingStore(judged_log)
    store.answers = 0
    async with running_node(judged_log, store) as node:
        before = len(judged_log.records[0])
        asked = [event("new 1"), event(2 * WINDOW + 1), event("new 2")]
        settled = await node.append(judged_log.epoch, 0, asked, timeout=TIMEOUT)
    assert [each.problem for each in settled] == ["", OutcomeUnknown.problem, ""]
    assert len(judged_log.records[0]) == before + 2


async def test_what_a_void_copy_was_met_before_is_new_all_the_same(judged_log: ModelLog) -> None:
    log = judged_log
    for number in range(2 * WINDOW):
        log.write(0, event(number), base=number)
    async with running_node(log) as node:
        log.open_for_appends.clear()
        task = asyncio.ensure_future(node.append(log.epoch, 0, [event("x")], timeout=TIMEOUT))
        await until(lambda: log.begun == 1)
        log.write(0, event("x"), base=0)  # a node that was stopped for long
        await until(lambda: node._tail.position(0) == 2 * WINDOW + 1)
        log.open_for_appends.set()
        (settled,) = await task
    assert (settled.offset, settled.duplicate) == (2 * WINDOW + 1, False)
    assert [record.offset for record in log.visible(0)][-1] == 2 * WINDOW + 1


async def test_a_young_log_needs_no_store_to_know_what_is_new(judged_log: ModelLog) -> None:
    log, store = judged_log, ModelStore(judged_log)
    async with running_node(log, store) as node:
        await node.append(log.epoch, 0, events(range(WINDOW // 2)), timeout=TIMEOUT)
        again = await node.append(log.epoch, 0, events(range(WINDOW // 2 + 1)), timeout=TIMEOUT)
        assert [s.duplicate for s in again] == [True] * (WINDOW // 2) + [False]
        assert store.looked_up == 0
        spread = [msgspec.structs.replace(event("elsewhere"), spread=2)]
        await node.append(log.epoch, 0, spread, timeout=TIMEOUT)
        assert store.looked_up == 1, "it may stand in another partition of its stream"
        for number in range(1000, 1000 + 2 * WINDOW):
            log.write(0, event(number), base=number)
        await until(lambda: not node._tail.judges[0].is_complete)  # type: ignore[attr-defined]
        await node.append(log.epoch, 0, [event("new")], timeout=TIMEOUT)
        assert store.looked_up == 2


async def test_an_original_from_before_the_index_is_found_behind_its_later_copy(judged_log: ModelLog) -> None:
    """The copy lies within the index, the record it copies does not: the receipt names the visible one."""
    log = judged_log
    for number in range(2 * WINDOW):
        log.write(0, event("x" if number in (WINDOW - 10, WINDOW + 10) else number), base=number - 30)
    log.records[0] = [msgspec.structs.replace(r, base=max(r.base, 0)) for r in log.records[0]]
    async with running_node(log) as node:
        (settled,) = await node.append(log.epoch, 0, [event("x")], timeout=TIMEOUT)
    assert (settled.offset, settled.duplicate) == (WINDOW - 10, True)


async def test_a_node_far_behind_the_log_refuses(judged_log: ModelLog) -> None:
    log = judged_log
    async with running_node(log) as node:
        log.open_for_tails.clear()
        for number in range(WINDOW):
            log.write(0, event(number), base=number)
        await until(lambda: node.load().lag_records == WINDOW)
        with pytest.raises(Unavailable):
            await node.append(log.epoch, 0, [event("a")], timeout=TIMEOUT)
        log.open_for_tails.set()
        await until(lambda: node.load().lag_records == 0)
        await node.append(log.epoch, 0, [event("a")], timeout=TIMEOUT)


async def test_history_joins_store_and_ring(judged_log: ModelLog) -> None:
    log = judged_log
    store = ModelStore(log, persisted={0: 20, 1: 0, 2: 0})
    for number in range(40):
        log.write(0, event(number % 35, stream="ab"[number % 2]), base=number)
    async with running_node(log, store) as node:
        visible = log.visible(0)
        assert len(visible) > 30
        for streams in (None, ["a"], ["a", "c"]):
            expected = [r for r in visible if streams is None or r.stream in streams]
            assert (await node.page(PageQuery(0, 0, 40, 100, 2**20, streams))).records == expected
            back = PageQuery(0, 0, 40, 100, 2**20, streams, True)
            assert (await node.page(back)).records == expected[::-1]
        assert (await node.page(PageQuery(0, 5, 40, 20, 2**20))).next == 25
        assert (await node.page(PageQuery(0, 5, 40, 20, 2**20, None, True))).next > 5
        assert (await node.offset_at(visible[30].append_ms))[0] == 30
        assert await node.append_time(0, 30) == visible[30].append_ms
        assert [r.offset for r in await node.find("a", "30", None)] == [30]


@pytest.mark.parametrize("by", ["store", "log"])
async def test_what_neither_store_nor_ring_has_is_waited_for_never_skipped(judged_log: ModelLog, by: str) -> None:
    log = judged_log
    store = ModelStore(log, persisted={0: 10, 1: 0, 2: 0})
    for number in range(4 * RING):
        log.write(0, event(number), base=number)
    async with running_node(log, store) as node:
        log.open_for_tails.clear()  # nor can the log be read again
        with pytest.raises(Unavailable):
            await node.page(PageQuery(0, 0, 4 * RING, 1000, 2**20, None, True))
        page = await node.page(PageQuery(0, 0, 4 * RING, 1000, 2**20))
        assert page.next == 10
        beats = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0), node.feed(log.epoch, {0: 10}) as feed:
                async for batch in feed:
                    assert batch.next == 10
                    beats += 1
        assert beats < 20, "asked without a pause"
        task = asyncio.ensure_future(read_feed(node, log, 4 * RING))
        await until(lambda: store.pages > 2)
        assert not task.done()
        if by == "store":
            store.persisted = None
        else:
            log.open_for_tails.set()
        assert await task == [e.value for e in events(range(4 * RING))]


async def test_what_the_store_has_not_got_yet_is_read_of_the_log(judged_log: ModelLog) -> None:
    log = judged_log
    total = 3000
    store = ModelStore(log, persisted={0: 10, 1: 0, 2: 0})
    for number in range(total):
        # every seventh is a copy of the one before it
        log.write(0, event(number - 1 if number % 7 == 1 else number, stream="ab"[number % 7 == 2]), base=number)
    visible = log.visible(0)
    assert len(visible) < total
    async with running_node(log, store) as node:
        for streams in (None, ["a"], ["b", "c"]):
            expected = [r for r in visible if streams is None or r.stream in streams]
            for backwards in (False, True):
                found: list[Record] = []
                low, high = 0, total
                while low < high:
                    page = await node.page(PageQuery(0, low, high, 100, 2**20, streams, backwards))
                    found += page.records
                    assert page.next != (high if backwards else low)
                    low, high = (low, page.next) if backwards else (page.next, high)
                assert found == (expected[::-1] if backwards else expected)
        reader = node._history.log_reader
        # All of them shared what was read, but for the first and the last chunk.
        assert reader.reads <= total // 512 + 4
        assert await read_feed(node, log, total) == [r.value for r in visible]


async def test_with_the_store_away_the_log_is_read_from_where_the_node_began(judged_log: ModelLog) -> None:
    log = judged_log
    store = ModelStore(log, persisted={0: 100, 1: 0, 2: 0})
    for number in range(400):
        log.write(0, event(number), base=number)
    async with running_node(log, store) as node:
        store.page_errors = [Unavailable("away")] * 1000
        node._watched.trouble = "away"  # type: ignore[union-attr]
        page = await node.page(PageQuery(0, 100, 400, 1000, 2**20))
        assert [record.offset for record in page.records] == list(range(100, page.next))
        assert page.next > 300
        back = await node.page(PageQuery(0, 0, 300, 50, 2**20, None, True))
        assert [record.offset for record in back.records] == list(range(299, 249, -1))
        with pytest.raises(Unavailable):
            await node.page(PageQuery(0, 99, 400, 1000, 2**20))
