"""A node when something goes wrong: slow and failing logs, deadlines, drains, several nodes on one folder."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from model_log import ModelLog, ModelStore, event, events
from node_world import RING, TIMEOUT, WINDOW, read_feed, running, running_node, until

from cdrs.node import Node
from shared.backends.embedded.log import open_log
from shared.clock import SystemClock
from shared.errors import (
    IdempotencyMismatch,
    LinkBroken,
    OutcomeUnknown,
    Overloaded,
    StaleStream,
    Unavailable,
)
from shared.records import PageQuery
from shared.settings import LogSettings, NodeSettings, Settings


@pytest.fixture
def log() -> ModelLog:
    return ModelLog()


# --- waiting, deadlines, refusals -------------------------------------------------------------------


async def test_what_arrives_while_a_batch_is_in_flight_becomes_the_next_batch(log: ModelLog) -> None:
    async with running_node(log) as node, asyncio.TaskGroup() as group:
        log.open_for_appends.clear()
        group.create_task(node.append(log.epoch, 0, events([0]), timeout=TIMEOUT))
        await until(lambda: log.begun == 1)
        for number in range(1, 6):
            group.create_task(node.append(log.epoch, 0, events([number]), timeout=TIMEOUT))
        await until(lambda: node.load().in_flight == 6)
        log.open_for_appends.set()
    assert log.batches == [1, 5]
    assert [r.value for r in log.records[0]] == [e.value for e in events(range(6))]


async def test_a_slow_partition_does_not_hold_another(log: ModelLog) -> None:
    async with running_node(log) as node:
        log.open_for_appends.clear()
        slow = asyncio.ensure_future(node.append(log.epoch, 0, events([0]), timeout=TIMEOUT))
        await until(lambda: log.begun == 1)
        other = asyncio.ensure_future(node.append(log.epoch, 1, events([1]), timeout=TIMEOUT))
        await until(lambda: log.begun == 2)
        log.open_for_appends.set()
        await asyncio.gather(slow, other)


async def test_a_handoff_that_never_had_its_turn_was_not_stored(log: ModelLog) -> None:
    async with running_node(log) as node:
        log.open_for_appends.clear()
        first = asyncio.ensure_future(node.append(log.epoch, 0, events([0]), timeout=TIMEOUT))
        await until(lambda: log.begun == 1)
        with pytest.raises(Unavailable):
            await node.append(log.epoch, 0, events([1]), timeout=0.05)
        log.open_for_appends.set()
        await first
        await node.append(log.epoch, 0, events([2]), timeout=TIMEOUT)
    assert [r.value for r in log.records[0]] == [e.value for e in events([0, 2])]


async def test_a_handoff_in_the_log_at_its_deadline_has_an_unknown_outcome(log: ModelLog) -> None:
    async with running_node(log) as node:
        log.open_for_appends.clear()
        with pytest.raises(OutcomeUnknown):
            await node.append(log.epoch, 0, events([0, 1]), timeout=0.05)
        log.open_for_appends.set()
        settled = await node.append(log.epoch, 0, events([0, 1, 2]), timeout=TIMEOUT)
        assert [s.duplicate for s in settled] == [True, True, False]
        assert node.load().in_flight == 0


async def test_a_tail_that_stands_still_settles_nothing_and_keeps_nothing(log: ModelLog) -> None:
    async with running_node(log, max_waiting_bytes=2000) as node:
        log.open_for_tails.clear()
        for number in range(20):
            with pytest.raises(OutcomeUnknown):
                await node.append(log.epoch, 0, events([number]), timeout=0.01)
        log.open_for_tails.set()
        (settled,) = await node.append(log.epoch, 0, events([3]), timeout=TIMEOUT)
        assert (settled.offset, settled.duplicate) == (3, True)


async def test_a_node_says_which_partitions_it_serves_badly_and_when_that_is_over(
    log: ModelLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdrs.node.MEASURE_INTERVAL", 0.005)
    async with running_node(log) as node:
        assert (await node.info()).strained == []
        log.open_for_tails.clear()
        await log.append(1, events([1, 2]), base=0)
        async with asyncio.timeout(TIMEOUT):
            while (await node.info()).strained != [1]:
                await asyncio.sleep(0.005)
            assert "strain" in node.troubles
            log.open_for_tails.set()
            while (await node.info()).strained:
                await asyncio.sleep(0.005)
        assert "strain" not in node.troubles


async def test_what_was_cancelled_is_not_kept_for_a_tail_that_stands_still(log: ModelLog) -> None:
    async with running_node(log, max_waiting_bytes=1000) as node:
        log.open_for_tails.clear()
        for number in range(10):
            task = asyncio.ensure_future(node.append(log.epoch, 0, events([number]), timeout=TIMEOUT))
            await until(lambda: sum(log.batches) > number)  # noqa: B023 -- awaited at once
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
        log.open_for_tails.set()
        await node.append(log.epoch, 0, events([3]), timeout=TIMEOUT)


async def test_what_nobody_waits_for_any_more_is_not_kept_for_a_tail_that_stands_still(log: ModelLog) -> None:
    async with running_node(log, max_waiting_bytes=1000) as node:
        log.open_for_tails.clear()
        log.open_for_appends.clear()
        with pytest.raises(OutcomeUnknown):
            await node.append(log.epoch, 0, events([0, 1]), timeout=0.05)
        log.open_for_appends.set()
        await until(lambda: log.batches == [2])
        task = asyncio.ensure_future(node.append(log.epoch, 1, events([2, 3]), timeout=TIMEOUT))
        await until(lambda: log.batches == [2, 2])
        log.open_for_tails.set()
        assert len(await task) == 2


async def test_more_than_may_wait_is_refused_at_once(log: ModelLog) -> None:
    async with running_node(log, max_waiting_bytes=1000) as node:
        log.open_for_appends.clear()
        first = asyncio.ensure_future(node.append(log.epoch, 0, events([0, 1]), timeout=TIMEOUT))
        await until(lambda: log.begun == 1)
        with pytest.raises(Overloaded):
            await node.append(log.epoch, 0, events([2, 3]), timeout=TIMEOUT)
        log.open_for_appends.set()
        await first
        await node.append(log.epoch, 0, events([2, 3]), timeout=TIMEOUT)
        await node.append(log.epoch, 0, events(range(10, 30)), timeout=TIMEOUT)


@pytest.mark.parametrize("error", [Unavailable("away"), OutcomeUnknown("who knows")])
async def test_an_error_of_the_log_is_the_answer_and_the_next_handoff_goes_on(log: ModelLog, error: Exception) -> None:
    async with running_node(log) as node:
        log.append_errors.append(error)
        with pytest.raises(type(error)):
            await node.append(log.epoch, 0, events([0]), timeout=TIMEOUT)
        (settled,) = await node.append(log.epoch, 0, events([0]), timeout=TIMEOUT)
        assert settled.duplicate is False


async def test_a_defect_under_an_append_is_an_unknown_outcome_and_no_end(
    log: ModelLog, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_node(log) as node:
        log.append_errors.append(ZeroDivisionError())
        with pytest.raises(OutcomeUnknown):
            await node.append(log.epoch, 0, events([0]), timeout=TIMEOUT)
        await node.append(log.epoch, 0, events([0]), timeout=TIMEOUT)
    assert "lane 0 failed" in caplog.text


async def test_what_waits_behind_a_handoff_that_fails_is_answered_and_forgotten() -> None:
    """The joined batch is refused, and then, one by one, the first of it ends the lane's task."""
    log = ModelLog(decides_identity=False)
    async with running_node(log) as node:
        log.open_for_appends.clear()
        tasks = [asyncio.ensure_future(node.append(log.epoch, 0, events([0]), timeout=TIMEOUT))]
        await until(lambda: log.begun == 1)
        tasks += [
            asyncio.ensure_future(node.append(log.epoch, 0, events([number]), timeout=60)) for number in (1, 2, 3)
        ]
        await until(lambda: node.load().in_flight == 4)
        log.append_errors += [None, StaleStream("joined"), ZeroDivisionError()]
        log.open_for_appends.set()
        async with asyncio.timeout(TIMEOUT):
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers[1:]] == [OutcomeUnknown, Unavailable, Unavailable]
        assert node._ingest.fullness == 0  # pyright: ignore[reportPrivateUsage]
        await node.append(log.epoch, 0, events([3]), timeout=TIMEOUT)


async def test_one_gateway_with_stale_settings_does_not_hurt_the_others(log: ModelLog) -> None:
    async with running_node(log) as node:
        log.open_for_appends.clear()
        tasks = [asyncio.ensure_future(node.append(log.epoch, 0, events([0]), timeout=TIMEOUT))]
        await until(lambda: log.begun == 1)
        tasks += [
            asyncio.ensure_future(node.append(log.epoch, 0, events([number]), timeout=TIMEOUT)) for number in (1, 2, 3)
        ]
        await until(lambda: node.load().in_flight == 4)
        # First for the joined batch of three, then for the first of them alone.
        log.append_errors += [None, StaleStream("joined"), StaleStream("alone")]
        log.open_for_appends.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(answer, StaleStream) for answer in answers] == [False, True, False, False]
    assert [r.value for r in log.records[0]] == [e.value for e in events([0, 2, 3])]


async def test_drain_finishes_what_is_in_flight_and_refuses_the_rest(log: ModelLog) -> None:
    async with running_node(log) as node:
        log.open_for_appends.clear()
        first = asyncio.ensure_future(node.append(log.epoch, 0, events([0]), timeout=TIMEOUT))
        await until(lambda: log.begun == 1)
        draining = asyncio.ensure_future(node.drain(TIMEOUT))
        await until(lambda: node.is_draining)
        assert not node.is_ready
        with pytest.raises(Unavailable):
            await node.append(log.epoch, 1, events([1]), timeout=TIMEOUT)
        assert not draining.done()
        log.open_for_appends.set()
        await draining
        assert first.done()


async def test_drain_is_bounded(log: ModelLog) -> None:
    async with running_node(log) as node:
        log.open_for_appends.clear()
        task = asyncio.ensure_future(node.append(log.epoch, 0, events([0]), timeout=TIMEOUT))
        await until(lambda: log.begun == 1)
        await asyncio.wait_for(node.drain(0.05), TIMEOUT)
        log.open_for_appends.set()
        await task


async def test_a_node_that_stops_says_so_to_everybody(log: ModelLog) -> None:
    async with running_node(log) as node:
        log.open_for_appends.clear()
        in_log = asyncio.ensure_future(node.append(log.epoch, 0, events([0]), timeout=TIMEOUT))
        await until(lambda: log.begun == 1)
        queued = asyncio.ensure_future(node.append(log.epoch, 0, events([1]), timeout=TIMEOUT))
        feed = asyncio.ensure_future(read_feed(node, log, 1))
        await until(lambda: node.load().connections == 1)
    with pytest.raises(OutcomeUnknown):
        await in_log
    with pytest.raises(Unavailable):
        await queued
    with pytest.raises(LinkBroken):
        await feed
    with pytest.raises(Unavailable):
        async with node.feed(log.epoch, {0: 0}):
            pass


# --- identity, where the log decides ------------------------------------------------------------------


async def test_a_copy_stored_by_another_node_is_a_duplicate_although_our_tail_reads_it_later(log: ModelLog) -> None:
    async with running_node(log) as node:
        log.open_for_tails.clear()
        log.write(0, event(1), base=0)
        task = asyncio.ensure_future(node.append(log.epoch, 0, [event(1), event(2)], timeout=TIMEOUT))
        await until(lambda: log.batches == [2])
        log.open_for_tails.set()
        first, second = await task
    assert (first.offset, first.duplicate) == (0, True)
    assert (second.offset, second.duplicate) == (1, False)


async def test_a_copy_with_another_body_that_our_tail_reads_first_is_refused(log: ModelLog) -> None:
    async with running_node(log) as node:
        log.open_for_appends.clear()
        task = asyncio.ensure_future(node.append(log.epoch, 0, [event(1)], timeout=TIMEOUT))
        await until(lambda: log.begun == 1)
        log.write(0, event(1, data=b'"other"'), base=0)
        async with asyncio.timeout(TIMEOUT):
            await read_feed(node, log, 1)
        log.open_for_appends.set()
        (settled,) = await task
    assert settled.problem == IdempotencyMismatch.problem


# --- the tail ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Unavailable("away"), OSError("gone")])
async def test_a_tail_that_fails_goes_on_where_it_stopped(log: ModelLog, error: Exception) -> None:
    async with running_node(log) as node:
        for number in range(5):
            log.tail_errors.append(error)
            await until(lambda: not log.tail_errors)
            await node.append(log.epoch, 0, events([number]), timeout=TIMEOUT)
        assert await read_feed(node, log, 5) == [e.value for e in events(range(5))]


async def test_a_log_that_is_away_at_first_is_waited_for(log: ModelLog) -> None:
    ends = log.ends
    answers: list[Exception] = [Unavailable("away"), OSError("gone")]

    async def failing() -> object:
        if answers:
            raise answers.pop(0)
        return await ends()

    log.ends = failing  # type: ignore[assignment, method-assign]
    settings = Settings(node=NodeSettings(ring_records=RING, window=WINDOW))
    node = Node(log, ModelStore(log), settings, SystemClock(), node_id="n1", incarnation="i1")
    with pytest.raises(Unavailable):
        await node.append(log.epoch, 0, events([0]), timeout=TIMEOUT)
    with pytest.raises(Unavailable):
        await node.page(PageQuery(0, 0, 1, 1, 1))
    async with running(node.run):
        assert await node.ready(TIMEOUT)
        await node.append(log.epoch, 0, events([0]), timeout=TIMEOUT)


async def test_a_feed_survives_a_store_that_is_away(log: ModelLog) -> None:
    for entry in events(range(100)):
        log.write(0, entry, base=0)
    store = ModelStore(log, page_errors=[Unavailable("away"), Unavailable("away")])
    async with running_node(log, store) as node:
        assert await read_feed(node, log, 100) == [e.value for e in events(range(100))]


async def test_a_feed_whose_history_cannot_be_read_breaks(log: ModelLog, caplog: pytest.LogCaptureFixture) -> None:
    for entry in events(range(100)):
        log.write(0, entry, base=0)
    store = ModelStore(log, page_errors=[ZeroDivisionError()])
    async with running_node(log, store) as node:
        with pytest.raises(LinkBroken):
            await read_feed(node, log, 100)
        assert "history of partition 0" in caplog.text
        assert len(await read_feed(node, log, 100)) == 100


async def test_readers_inside_the_ring_never_ask_the_store(log: ModelLog) -> None:
    store = ModelStore(log)
    async with running_node(log, store) as node:
        await node.append(log.epoch, 0, events(range(RING)), timeout=TIMEOUT)
        await read_feed(node, log, RING)
        page = await node.page(PageQuery(0, 0, RING, 1000, 2**20))
        assert len(page.records) == RING
    assert store.pages == 0


# --- several nodes on one folder ------------------------------------------------------------------------


async def test_nodes_that_share_a_folder_store_an_event_once_and_show_the_same(tmp_path: Path) -> None:
    sent = events(range(300))
    settings = LogSettings(partitions=2)
    clock = SystemClock()
    async with (
        open_log(tmp_path, settings, clock) as (log_one, store_one),
        open_log(tmp_path, settings, clock) as (log_two, store_two),
    ):
        one = Node(log_one, store_one, Settings(), clock, node_id="n1", incarnation="i1")
        two = Node(log_two, store_two, Settings(), clock, node_id="n2", incarnation="i2")
        async with running(one.run), running(two.run):
            assert await one.ready(TIMEOUT)
            assert await two.ready(TIMEOUT)
            for at in range(0, 300, 50):
                piece = sent[at : at + 50]
                answers = await asyncio.gather(
                    *(node.append(log_one.epoch, 0, piece, timeout=TIMEOUT) for node in (one, two))
                )
                places = [[(s.offset, s.append_ms) for s in answer] for answer in answers]
                assert places[0] == places[1]
                assert all(a.duplicate != b.duplicate for a, b in zip(*answers, strict=True))
            expected = [e.value for e in sent]
            assert await read_feed(one, log_one, 300) == expected
            assert await read_feed(two, log_two, 300) == expected
