"""The dispatcher: order, failover, deadlines and bounds, on model nodes."""

from __future__ import annotations

import asyncio
import random

import pytest
from gateway_rig import WAYS, Rig, problems, submit, take_way
from model_nodes import UNKNOWN, ModelNode, event, eventually

from gateway.submission import Submission
from shared.detector import NodeState
from shared.errors import LinkBroken, Overloaded, StaleEpoch, StaleStream, Unavailable
from shared.records import NewEvent, Settlement

WAIT = 20.0


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return take_way(monkeypatch, request.param)


def sent(node: ModelNode) -> list[list[str]]:
    return [[item.value.decode().strip() for item in events] for _, events in node.handoffs]


async def test_events_are_settled_in_the_order_submitted() -> None:
    rig = Rig()
    async with rig.running():
        submission = rig.dispatcher.submit([(0, event("x")), (1, event("y")), (0, event("z"))], timeout=WAIT)
        assert not submission.done
        await submission.wait()
        assert submission.done
        assert submission.results == [Settlement(0, 0, 1), Settlement(1, 0, 1), Settlement(0, 1, 1)]
        again = submit(rig, "x")
        await again.wait()
        assert again.results == [Settlement(0, 0, 1, duplicate=True)]
        assert rig.dispatcher.waiting_bytes == rig.dispatcher.in_flight == 0


async def test_an_idle_lane_hands_off_within_an_iteration_or_two_of_the_loop() -> None:
    rig = Rig()
    async with rig.running():
        await submit(rig, "first").wait()
        node = rig.best()
        submit(rig, "second")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sent(node)[-1] == ["second"]


async def test_what_arrives_during_a_handoff_is_the_next_one(way: str) -> None:
    rig = Rig()
    async with rig.running():
        node = rig.best()
        node.gate = asyncio.Event()
        submissions = [submit(rig, "1")]
        await eventually(lambda: node.handoffs)
        submissions += [submit(rig, str(i)) for i in range(2, 8)]
        other = submit(rig, "elsewhere", partition=1)
        await asyncio.sleep(0.01)
        assert sent(node)[0] == ["1"]
        assert rig.dispatcher.in_flight == (1 if way.endswith("together") else 2), (
            "partitions do not wait for each other"
        )
        node.gate.set()
        for submission in [*submissions, other]:
            await submission.wait()
        assert [names for names in sent(node) if names != ["elsewhere"]] == [["1"], list("234567")]
        assert max(n.most_in_flight for n in rig.nodes.values()) == 1


async def test_a_handoff_is_bounded_in_events_and_bytes() -> None:
    rig = Rig("a", handoff_events=3, handoff_bytes=4096)
    async with rig.running():
        small = submit(rig, *"abcdefgh")
        big = rig.dispatcher.submit([(0, event(f"big{i}", size=2000)) for i in range(3)], timeout=WAIT)
        huge = rig.dispatcher.submit([(0, event("huge", size=9000)), (0, event("last"))], timeout=WAIT)
        for submission in (small, big, huge):
            await submission.wait()
        assert sent(rig.best()) == [
            ["a", "b", "c"],
            ["d", "e", "f"],
            ["g", "h", "big0"],
            ["big1"],
            ["big2"],
            ["huge"],
            ["last"],
        ]
        assert rig.log.values(0) == [*"abcdefgh", "big0", "big1", "big2", "huge", "last"]
        assert problems(huge) == ["", ""]
        assert max(map(len, sent(rig.best()))) == 3


@pytest.mark.parametrize("error", [LinkBroken("cut"), Unavailable("full"), StaleEpoch("other"), UNKNOWN])
async def test_a_failed_handoff_goes_whole_to_the_next_in_rank_and_nothing_newer_before_it(error: Exception) -> None:
    rig = Rig()
    async with rig.running():
        first, second = rig.best(), rig.others()[0]
        first.gate = asyncio.Event()
        first.errors = [error]
        submission = submit(rig, "1", "2")
        await eventually(lambda: first.handoffs)
        newer = submit(rig, "3")
        first.gate.set()
        await submission.wait()
        await newer.wait()
        assert sent(first)[0] == ["1", "2"]
        assert sent(second)[0] == ["1", "2"]
        assert rig.log.values(0) == ["1", "2", "3"]
        assert problems(submission) == ["", ""]


async def test_only_a_broken_link_costs_a_node_its_place() -> None:
    rig = Rig()
    async with rig.running():
        first = rig.best()
        first.errors = [Unavailable("full")]
        await submit(rig, "1").wait()
        assert rig.best() is first
        first.errors = [LinkBroken("cut")]
        await submit(rig, "2").wait()
        assert rig.best() is not first


async def test_freshness_is_for_the_first_attempt_only() -> None:
    rig = Rig()
    async with rig.running():
        first, second = rig.best(), rig.others()[0]
        first.errors = [LinkBroken("cut")]
        await rig.dispatcher.submit([(0, event("1", fresh=True))], timeout=WAIT).wait()
        assert [item.fresh for _, events in first.handoffs for item in events] == [True]
        assert [item.fresh for _, events in second.handoffs for item in events] == [False]


async def test_stored_although_the_link_broke_is_a_duplicate_not_a_second_copy() -> None:
    rig = Rig()
    async with rig.running():
        rig.best().errors_after = [LinkBroken("cut")]
        submission = submit(rig, "1", "2")
        await submission.wait()
        assert submission.results == [Settlement(0, 0, 1, duplicate=True), Settlement(0, 1, 1, duplicate=True)]
        assert rig.log.values(0) == ["1", "2"]


async def test_a_late_copy_at_the_first_node_changes_nothing() -> None:
    """Scenario 3: batch 1 hangs at A, is stored through B, batch 2 follows; then A's copy of batch 1 arrives."""
    rig = Rig()
    async with rig.running():
        first = rig.best()
        first.late = [0.0]
        await submit(rig, "1", "2").wait()
        await submit(rig, "3").wait()
        first.settle_late()
        assert rig.log.values(0) == ["1", "2", "3"]


@pytest.mark.parametrize("seed", range(12))
async def test_order_and_completeness_under_random_failures(seed: int) -> None:
    """Whatever breaks, each partition's log holds every event once, in the order submitted."""
    chance = random.Random(seed)
    rig = Rig(partitions=3, handoff_events=chance.choice((1, 3, 50)))
    expected: dict[int, list[str]] = {0: [], 1: [], 2: []}
    submissions: list[Submission] = []
    async with rig.running(rig.beat):  # those that break come back
        for round_ in range(60):
            _misbehave(chance, rig)
            batch: list[tuple[int, NewEvent]] = []
            for i in range(chance.randint(1, 6)):
                partition, name = chance.randrange(3), f"{round_}.{i}"
                expected[partition].append(name)
                batch.append((partition, event(name)))
            submissions.append(rig.dispatcher.submit(batch, timeout=60))
            if chance.random() < 0.5:
                await asyncio.sleep(chance.choice((0, 0, 0.002)))
        for submission in submissions:
            await submission.wait()
    assert {problem for submission in submissions for problem in problems(submission)} == {""}
    for node in rig.nodes.values():
        node.settle_late()
        assert node.most_in_flight <= 1
    assert {partition: rig.log.values(partition) for partition in expected} == expected


def _misbehave(chance: random.Random, rig: Rig) -> None:
    node = chance.choice(list(rig.nodes.values()))
    match chance.randrange(8):
        case 0:
            node.errors.append(LinkBroken("cut"))
        case 1:
            node.errors.append(Unavailable("full"))
        case 2:
            node.errors_after.append(UNKNOWN)
        case 3:
            node.errors_after.append(LinkBroken("cut"))
        case 4:
            node.late.append(0.0)
        case 5:
            node.settle_late()
        case _:
            rig.membership.paint(node.member)


async def test_a_hung_node_is_replaced_as_soon_as_it_counts_as_dead() -> None:
    rig = Rig(handoff_timeout=60)
    async with rig.running():
        stuck = rig.best()
        stuck.hangs = True
        submission = submit(rig, "1", timeout=60)
        await eventually(lambda: stuck.handoffs)
        rig.membership.paint(stuck.member, NodeState.DEAD)
        await asyncio.wait_for(submission.wait(), 5)
        assert problems(submission) == [""]


async def test_a_handoff_runs_on_at_a_mere_suspect_and_newer_ones_avoid_it() -> None:
    rig = Rig()
    async with rig.running():
        slow = rig.best()
        slow.gate = asyncio.Event()
        one = submit(rig, "1")
        await eventually(lambda: slow.handoffs)
        rig.membership.paint(slow.member, NodeState.SUSPECT)
        await eventually(lambda: rig.best() is not slow)
        two = submit(rig, "2")
        await asyncio.sleep(0.01)
        assert [len(node.handoffs) for node in rig.nodes.values()].count(0) == 2
        slow.gate.set()
        await one.wait()
        await two.wait()
        assert sent(rig.best()) == [["2"]]
        assert rig.log.values(0) == ["1", "2"]


async def test_an_attempt_that_takes_too_long_is_repeated_elsewhere() -> None:
    rig = Rig(handoff_timeout=0.01)
    async with rig.running():
        stuck = rig.best()
        stuck.hangs = True
        submission = submit(rig, "1")
        await submission.wait()
        assert problems(submission) == [""]
        assert rig.best() is stuck


async def test_without_any_node_events_wait_for_one_to_return() -> None:
    rig = Rig("a")
    async with rig.running():
        node = rig.best()
        rig.router.broken(rig.router.any())
        submission = submit(rig, "1")
        await asyncio.sleep(0.03)
        assert problems(submission) == ["?"]
        rig.membership.paint(node.member)
        await submission.wait()
        assert problems(submission) == [""]


async def test_what_was_never_sent_by_its_deadline_is_unavailable_and_never_stored() -> None:
    rig = Rig("a")
    async with rig.running():
        node = rig.best()
        node.gate = asyncio.Event()
        blocking = submit(rig, "1")
        await eventually(lambda: node.handoffs)
        late = submit(rig, "2", timeout=0.01)
        await late.wait()
        assert problems(late) == ["unavailable"]
        assert late.done
        node.gate.set()
        await blocking.wait()
        await submit(rig, "3").wait()
        assert rig.log.values(0) == ["1", "3"]
        assert rig.dispatcher.waiting_bytes == 0


async def test_what_was_under_way_at_its_deadline_is_unknown() -> None:
    rig = Rig("a", handoff_events=2)
    async with rig.running():
        node = rig.best()
        node.gate = asyncio.Event()
        submission = submit(rig, "1", "2", "3", timeout=0.02)
        await submission.wait()
        assert problems(submission) == ["outcome-unknown", "outcome-unknown", "unavailable"]
        results = list(submission.results)
        node.gate.set()
        await eventually(lambda: rig.log.values(0))
        await submit(rig, "4").wait()
        assert submission.results == results, "late answers change nothing"
        assert rig.log.values(0) == ["1", "2", "4"]
        assert rig.dispatcher.waiting_bytes == 0


async def test_what_every_node_refused_until_the_deadline_is_unavailable() -> None:
    rig = Rig()
    async with rig.running():
        for node in rig.nodes.values():
            node.errors = [Unavailable("no quorum") for _ in range(1000)]
        submission = submit(rig, "1", timeout=0.1)
        await submission.wait()
        assert problems(submission) == ["unavailable"]
        for node in rig.nodes.values():
            node.errors.clear()
        await submit(rig, "2").wait()
        assert rig.log.values(0) == ["2"]


@pytest.mark.parametrize("others", [Overloaded("full"), Unavailable("draining")], ids=["all full", "one full"])
async def test_where_every_node_refuses_and_one_is_full_the_producer_hears_of_it_at_once(others: Unavailable) -> None:
    rig = Rig()
    async with rig.running():
        for node in rig.nodes.values():
            node.errors = [others] * 1000
        rig.others()[-1].errors = [Overloaded("full")] * 1000
        submission = submit(rig, "1", "2", timeout=3600)
        async with asyncio.timeout(WAIT):
            await submission.wait()
        assert problems(submission) == ["overloaded", "overloaded"]
        assert all(len(node.handoffs) == 1 for node in rig.nodes.values()), "each was asked, and only once"
        for node in rig.nodes.values():
            node.errors.clear()
        await submit(rig, "3").wait()
        assert rig.log.values(0) == ["3"]
        assert rig.dispatcher.waiting_bytes == rig.dispatcher.in_flight == 0


async def test_a_full_node_says_nothing_of_what_another_may_have_stored() -> None:
    rig = Rig()
    async with rig.running():
        rig.best().errors_after = [UNKNOWN]
        for node in rig.others():
            node.errors = [Overloaded("full")]
        submission = submit(rig, "1")
        await submission.wait()
        assert problems(submission) == [""], "it goes on until it is known"
        assert rig.log.values(0) == ["1"]


async def test_one_unknown_attempt_makes_the_outcome_unknown_whatever_follows() -> None:
    rig = Rig()
    async with rig.running():
        rig.best().errors_after = [UNKNOWN]
        for node in rig.nodes.values():
            node.errors = [Unavailable("no quorum") for _ in range(1000)]
        rig.best().errors.clear()
        rig.best().hangs = False
        submission = submit(rig, "1", timeout=0.05)
        await eventually(lambda: rig.log.values(0))
        rig.best().errors = [Unavailable("no quorum") for _ in range(1000)]
        await submission.wait()
        assert problems(submission) == ["outcome-unknown"]


async def test_expired_events_of_a_handoff_are_left_out_when_it_is_repeated() -> None:
    rig = Rig()
    async with rig.running():
        first, second = rig.best(), rig.others()[0]
        first.gate = asyncio.Event()
        blocking = submit(rig, "0")
        await eventually(lambda: first.handoffs)
        short, long = submit(rig, "1", timeout=0.03), submit(rig, "2")
        opened, first.gate = first.gate, asyncio.Event()
        opened.set()
        await blocking.wait()
        await eventually(lambda: sent(first)[-1] == ["1", "2"])
        await short.wait()
        rig.router.broken(rig.handle(first))
        await long.wait()
        assert sent(second) == [["2"]]
        assert problems(short) == ["outcome-unknown"]
        assert problems(long) == [""]


async def test_too_much_waiting_is_refused_at_once_and_room_comes_back() -> None:
    rig = Rig("a", max_waiting_bytes=10_000)
    async with rig.running():
        node = rig.best()
        node.gate = asyncio.Event()
        taken = rig.dispatcher.submit([(0, event(str(i), size=1000)) for i in range(6)], timeout=WAIT)
        with pytest.raises(Overloaded) as refusal:
            rig.dispatcher.submit([(1, event("more", size=1000))], timeout=WAIT)
        assert refusal.value.retry_after == 1
        assert not await rig.dispatcher.drained(0.01)
        node.gate.set()
        await taken.wait()
        assert await rig.dispatcher.drained(1)
        await submit(rig, "more").wait()
        assert rig.log.values(0) == [*"012345", "more"]


async def test_before_the_first_node_was_reached_nothing_is_taken() -> None:
    rig = Rig()
    with pytest.raises(Unavailable):
        submit(rig, "1")


async def test_a_refused_event_is_final_and_its_neighbours_are_stored() -> None:
    rig = Rig("a")

    async def append(*_: object, **__: object) -> list[Settlement]:
        return [Settlement(0, 0, 1), Settlement(problem="idempotency-mismatch", detail="another body")]

    async with rig.running():
        rig.best().append = append  # type: ignore[assignment, method-assign]
        submission = submit(rig, "1", "2")
        await submission.wait()
        assert problems(submission) == ["", "idempotency-mismatch"]


async def test_a_stale_stream_is_told_to_its_own_events_only() -> None:
    rig = Rig()
    rig.log.spreads["wide"] = 4
    async with rig.running():
        node = rig.best()
        names = [("good", "1"), ("wide", "2"), ("good", "3"), ("fine", "4")]
        submission = rig.dispatcher.submit([(0, event(name, stream=stream)) for stream, name in names], timeout=WAIT)
        await submission.wait()
        assert problems(submission) == ["", StaleStream.problem, "", ""]
        assert rig.log.values(0) == ["1", "3", "4"]
        assert len(node.handoffs) == 4
        alone = rig.dispatcher.submit([(0, event("5", stream="wide"))], timeout=WAIT)
        await alone.wait()
        assert problems(alone) == [StaleStream.problem]
        assert len(node.handoffs) == 5
        assert rig.dispatcher.waiting_bytes == 0


async def test_progress_is_told_once_per_handoff() -> None:
    rig = Rig("a", handoff_events=2)
    async with rig.running():
        node = rig.best()
        node.gate = asyncio.Event()
        node.gate.set()
        submission = submit(rig, *"12345")
        seen = []
        while not submission.done:
            await submission.wait_progress()
            seen.append(sum(result is not None for result in submission.results))
        assert seen == [2, 4, 5]


async def test_progress_ends_with_the_deadline() -> None:
    rig = Rig("a")
    async with rig.running():
        rig.best().hangs = True
        submission = submit(rig, "1", timeout=0.01)
        await submission.wait_progress()
        assert problems(submission) == ["outcome-unknown"]


async def test_stopping_settles_everything_honestly() -> None:
    rig = Rig("a", handoff_events=1)
    async with rig.running():
        rig.best().hangs = True
        submission = submit(rig, "1", "2")
        await eventually(lambda: rig.best().handoffs)
    await submission.wait()
    assert problems(submission) == ["outcome-unknown", "unavailable"]
    with pytest.raises(Unavailable):
        submit(rig, "3")


async def test_an_observer_hears_of_handoffs_failures_and_failovers() -> None:
    rig = Rig()
    heard: list[tuple[object, ...]] = []

    class Observer:
        def settled(self, node: str, events: int, seconds: float) -> None:
            heard.append(("settled", node, events))

        def failed(self, node: str, cause: str) -> None:
            heard.append(("failed", node, cause))

        def failed_over(self, cause: str, seconds: float) -> None:
            heard.append(("failed over", cause))

    rig.dispatcher.observer = Observer()
    async with rig.running():
        first, second = rig.best().member.id, rig.others()[0].member.id
        rig.best().errors = [LinkBroken("cut")]
        await submit(rig, "1", "2").wait()
        assert heard == [("failed", first, "link-broken"), ("settled", second, 2), ("failed over", "link-broken")]
        assert rig.dispatcher.ewma_ms > 0


# --- single events, told by a call ---------------------------------------------------------------------


async def test_one_event_is_told_once_when_it_is_settled() -> None:
    rig = Rig()
    async with rig.running():
        node = rig.best()
        node.gate = asyncio.Event()
        told: list[str] = []
        pending = rig.dispatcher.submit_one(0, event("1"), timeout=WAIT, done=lambda: told.append("1"))
        await eventually(lambda: node.handoffs)
        assert (told, pending.results) == ([], [None])
        node.gate.set()
        await eventually(lambda: told)
        assert (told, pending.results) == (["1"], [Settlement(0, 0, 1)])
        assert rig.dispatcher.waiting_bytes == 0


async def test_one_event_is_told_at_its_deadline_what_may_have_become_of_it() -> None:
    rig = Rig("a")
    async with rig.running():
        node = rig.best()
        node.gate = asyncio.Event()
        told: list[str] = []
        first = rig.dispatcher.submit_one(0, event("1"), timeout=0.5, done=lambda: told.append("1"))
        await eventually(lambda: node.handoffs)
        second = rig.dispatcher.submit_one(0, event("2"), timeout=0.01, done=lambda: told.append("2"))
        await eventually(lambda: len(told) == 2)
        assert (told, problems(first), problems(second)) == (["2", "1"], ["outcome-unknown"], ["unavailable"])
        node.gate.set()
        await submit(rig, "3").wait()
        assert rig.log.values(0) == ["1", "3"]
        assert told == ["2", "1"]
        assert rig.dispatcher.waiting_bytes == 0


async def test_single_events_and_many_keep_their_order_in_a_partition() -> None:
    rig = Rig("a", partitions=2, handoff_events=3)
    async with rig.running():
        node = rig.best()
        waiting: list[Submission] = []
        for n in range(40):
            for partition in (0, 1):
                names = [f"{n}"] if n % 3 else [f"{n}", f"{n}+"]
                if n % 3:
                    waiting.append(
                        rig.dispatcher.submit_one(
                            partition, event(names[0], stream=f"{partition}"), timeout=WAIT, done=str
                        )
                    )
                else:
                    pairs = [(partition, event(name, stream=f"{partition}")) for name in names]
                    waiting.append(rig.dispatcher.submit(pairs, timeout=WAIT))
            if n % 4 == 0:
                await asyncio.sleep(0)
            if n == 20:
                node.errors.append(Unavailable("once"))
        await eventually(lambda: all(pending.done for pending in waiting))
        expected = [name for n in range(40) for name in ([f"{n}"] if n % 3 else [f"{n}", f"{n}+"])]
        assert [rig.log.values(0), rig.log.values(1)] == [expected, expected]
        assert node.most_in_flight == 1


async def test_partitions_that_are_committed_together_are_handed_over_together(way: str) -> None:
    rig = Rig("a", partitions=3)
    async with rig.running():
        node = rig.best()
        node.gate = asyncio.Event()
        first = submit(rig, "1", partition=0)
        await eventually(lambda: node.handoffs)
        others = [submit(rig, f"{n}", partition=n % 3) for n in range(2, 8)]
        await asyncio.sleep(0.01)
        assert len(node.handoffs) == (1 if way.endswith("together") else 3)
        node.gate.set()
        for pending in (first, *others):
            await pending.wait()
        assert [rig.log.values(partition) for partition in range(3)] == [["1", "3", "6"], ["4", "7"], ["2", "5"]]


async def test_stopping_tells_single_events_too() -> None:
    rig = Rig("a", handoff_events=1)
    told: list[int] = []
    async with rig.running():
        rig.best().hangs = True
        pending = [
            rig.dispatcher.submit_one(0, event(str(n)), timeout=WAIT, done=lambda n=n: told.append(n))  # type: ignore[misc]
            for n in range(2)
        ]
        await eventually(lambda: rig.best().handoffs)
    assert [problems(one) for one in pending] == [["outcome-unknown"], ["unavailable"]]
    assert sorted(told) == [0, 1]


async def test_handoffs_are_cut_to_what_is_settled_in_time_and_grow_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.handing.SETTLED_WITHIN", 0.1)
    monkeypatch.setattr("gateway.handing.LEAST_EVENTS", 4)
    rig = Rig("a", handoff_events=64)
    async with rig.running():
        node = rig.best()
        node.gate = asyncio.Event()
        slow = submit(rig, *map(str, range(64)))
        await eventually(lambda: node.handoffs)
        await asyncio.sleep(0.5)
        node.gate.set()
        await slow.wait()
        many = submit(rig, *map(str, range(1000, 1256)))
        await many.wait()
        sizes = [len(names) for names in sent(node)]
        assert sizes[:2] == [64, 16], "a quarter at most of what took so long"
        assert max(sizes[2:]) == 64
        assert rig.log.values(0) == [*map(str, range(64)), *map(str, range(1000, 1256))]
        assert rig.dispatcher.waiting_bytes == 0
