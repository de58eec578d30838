"""What was given up is not overtaken by what its request put behind it, on model nodes."""

from __future__ import annotations

import asyncio

import pytest
from gateway_rig import WAYS, Rig, problems, submit, take_way
from model_nodes import event, eventually

from gateway.submission import Chain, Chunk, Queue, Submission
from shared.clock import SystemClock
from shared.errors import Overloaded
from shared.records import Settlement

WAIT = 20.0


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return take_way(monkeypatch, request.param)


@pytest.mark.parametrize("size", [8, 1], ids=["one handoff", "two handoffs"])
async def test_nothing_overtakes_what_its_request_gave_up(size: int) -> None:
    """The first of two submissions reaches its deadline while it waits; the second has time left."""
    rig = Rig("a", handoff_events=size)
    async with rig.running():
        node = rig.best()
        node.gate = asyncio.Event()
        blocking = submit(rig, "0")
        await eventually(lambda: node.handoffs)
        chain = Chain()
        first = rig.dispatcher.submit([(0, event("1"))], timeout=0.03, chain=chain)
        second = rig.dispatcher.submit([(0, event("2"))], timeout=WAIT, chain=chain)
        other = submit(rig, "3")
        await first.wait()
        node.gate.set()
        for pending in (blocking, second, other):
            await pending.wait()
        assert [problems(each) for each in (first, second, other)] == [["unavailable"], ["unavailable"], [""]]
        assert rig.log.values(0) == ["0", "3"]


async def test_what_is_tried_again_goes_without_those_behind_one_that_was_given_up() -> None:
    rig = Rig("a", handoff_timeout=0.05)
    async with rig.running():
        node = rig.best()
        node.hangs = True
        chain = Chain()
        first = rig.dispatcher.submit([(0, event("1"))], timeout=0.03, chain=chain)
        second = rig.dispatcher.submit([(0, event("2"))], timeout=WAIT, chain=chain)
        other = submit(rig, "3")
        await first.wait()
        node.hangs = False
        for pending in (second, other):
            await pending.wait()
        unknown = ["outcome-unknown"]
        assert [problems(each) for each in (first, second, other)] == [unknown, unknown, [""]]
        assert rig.log.values(0) == ["3"]


async def test_nothing_of_a_batch_overtakes_what_was_refused_of_it() -> None:
    """It is larger than a handoff; the node is full for the first part, and has room again for the second."""
    rig = Rig("a", handoff_events=2)
    async with rig.running():
        node = rig.best()
        node.errors = [Overloaded("full")]
        submission = submit(rig, "1", "2", "3", "4", "5")
        other = submit(rig, "6")
        for pending in (submission, other):
            await pending.wait()
        assert (problems(submission), problems(other)) == (["overloaded"] * 5, [""])
        assert rig.log.values(0) == ["6"]
        assert (rig.dispatcher.waiting_bytes, node.in_flight) == (0, {0: 0})


async def test_a_refusal_holds_up_what_its_request_sends_later() -> None:
    rig = Rig("a", handoff_events=1)
    async with rig.running():
        node = rig.best()
        node.errors = [Overloaded("full")]
        chain = Chain()
        waiting = [rig.dispatcher.submit([(0, event(name))], timeout=WAIT, chain=chain) for name in "12"]
        waiting.append(submit(rig, "3"))
        for pending in waiting:
            await pending.wait()
        assert [problems(each) for each in waiting] == [["overloaded"], ["unavailable"], [""]]
        assert rig.log.values(0) == ["3"]


async def test_the_rest_of_a_chunk_that_is_refused_is_told_at_once_and_holds_up_what_comes_later() -> None:
    """The handoff that took its beginning may have been settled for that, and refused for others."""
    chain, clock = Chain(), SystemClock()
    submission = Submission(3, deadline=clock.monotonic() + WAIT, clock=clock, release=lambda _size: None, chain=chain)
    queue = Queue()
    queue.put(Chunk(submission, range(3), [event(name) for name in "123"], 3))
    queue.take(clock.monotonic(), max_events=1, max_bytes=1 << 20).settle([Settlement()])
    waiting = asyncio.ensure_future(submission.wait())
    await asyncio.sleep(0)
    queue.refuse_rest(Settlement(problem="overloaded"))
    async with asyncio.timeout(WAIT / 2):
        await waiting
    assert problems(submission) == ["", "overloaded", "overloaded"]
    assert chain.is_broken
    assert not queue
