"""The failure detector, without a loop and without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.detector import Detector, NodeState

BEAT = 0.3
DEAD_AFTER = 1.5
ME = "me/0"


class World:
    """Processes that beat, and one that reads."""

    def __init__(self, *peers: str, hold: float | None = None) -> None:
        self.now = 1000.0
        self.detector = Detector(ME, interval=BEAT, suspect_after=3, dead_after=DEAD_AFTER, hold=hold)
        self.seqs = dict.fromkeys((ME, *peers), 0)
        self.stopped: set[str] = set()
        self.draining: set[str] = set()
        self.read()

    def beat(self) -> None:
        for key in self.seqs.keys() - self.stopped:
            self.seqs[key] += 1

    def read(self, *, after: float = BEAT) -> None:
        self.now += after
        self.beat()
        self.detector.observe(self.now, self.seqs, draining=self.draining)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / BEAT)):
            self.read()

    def state(self, key: str) -> NodeState:
        return self.detector.state(key)


def test_a_process_that_beats_stays_live() -> None:
    world = World("a")
    world.run(60)
    assert world.state("a") is NodeState.LIVE


def test_three_missed_beats_make_a_suspect_and_1500_ms_a_dead_one() -> None:
    world = World("a", "b", "c")
    world.run(3)
    world.stopped.add("a")
    states = []
    for _ in range(6):
        world.read()
        states.append(str(world.state("a")))
    assert states == ["live", "live", "suspect", "suspect", "dead", "dead"]
    assert world.state("b") is world.state("c") is NodeState.LIVE


def test_a_dead_process_that_beats_again_is_live_again() -> None:
    world = World("a", "b", "c")
    world.stopped.add("a")
    world.run(6)
    assert world.state("a") is NodeState.DEAD
    assert world.detector.dead_for(world.now, "a") == pytest.approx(4.5)
    world.stopped.clear()
    world.read()
    assert world.state("a") is NodeState.LIVE
    assert world.detector.dead_for(world.now, "a") == 0


def test_the_only_other_process_is_declared_dead() -> None:
    world = World("a")
    world.stopped.add("a")
    world.run(3)
    assert world.state("a") is NodeState.DEAD


def test_two_of_three_that_die_one_after_the_other_are_both_declared_dead() -> None:
    world = World("a", "b", "c")
    world.stopped.add("a")
    world.run(3)
    world.stopped.add("b")
    world.run(3)
    assert [str(world.state(key)) for key in "abc"] == ["dead", "dead", "live"]


def test_when_more_than_half_fall_silent_together_the_last_picture_is_kept() -> None:
    world = World("a", "b", "c")
    world.run(3)
    world.stopped |= {"a", "b"}
    world.run(20)
    assert {str(world.state(key)) for key in "abc"} == {"live"}
    world.stopped.clear()
    world.read()
    world.stopped.add("a")
    world.run(3)
    assert world.state("a") is NodeState.DEAD, "a single one is judged as ever"


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_together_means_within_two_reads(lag: int) -> None:
    world = World("a", "b", "c")
    world.stopped.add("a")
    for _ in range(lag):
        world.read()
    world.stopped.add("b")
    world.run(20)
    assert NodeState.DEAD not in {world.state("a"), world.state("b")}


def test_the_picture_is_not_held_for_ever() -> None:
    world = World("a", "b", hold=6)
    world.stopped |= {"a", "b"}
    world.run(6)
    assert NodeState.DEAD not in {world.state("a"), world.state("b")}
    world.run(3)
    assert world.state("a") is world.state("b") is NodeState.DEAD


def test_when_the_registry_has_lost_everybody_they_get_time_to_be_back() -> None:
    world = World("a", "b", "c")
    world.run(3)
    world.stopped |= {"a", "b"}
    world.detector.break_link("b")
    world.detector.spare(world.now + 3)
    world.run(2.7)
    assert [str(world.state(key)) for key in "abc"] == ["live", "dead", "live"]
    world.run(1.8)
    assert world.state("a") is NodeState.DEAD, "only for a while"


def test_half_of_the_others_may_die_together() -> None:
    world = World("a", "b", "c", "d")
    world.stopped |= {"a", "b"}
    world.run(3)
    assert [str(world.state(key)) for key in "abcd"] == ["dead", "dead", "live", "live"]


def test_one_of_a_held_pair_is_not_dead_the_moment_the_other_returns() -> None:
    world = World("a", "b", "c")
    world.stopped |= {"a", "b"}
    world.run(12)
    world.stopped.remove("a")
    world.read()
    assert world.state("b") is not NodeState.DEAD
    world.run(3)
    assert world.state("b") is NodeState.DEAD


def test_a_broken_link_is_suspicion_at_once_until_the_process_is_heard_again() -> None:
    world = World("a", "b")
    world.detector.break_link("a")
    assert world.state("a") is NodeState.SUSPECT
    world.read()
    assert world.state("a") is NodeState.LIVE


def test_two_of_three_killed_at_once_are_dead_in_time_where_their_links_broke() -> None:
    world = World("a", "b", "c")
    world.run(3)
    for key in ("a", "b"):
        world.seqs[key] += 1  # a last beat that nobody has read when the link breaks
        world.detector.break_link(key)
    world.stopped |= {"a", "b"}
    world.run(2.1)
    assert [str(world.state(key)) for key in "abc"] == ["dead", "dead", "live"]


def test_a_reader_that_was_stopped_declares_nobody_dead() -> None:
    world = World("a", "b", "c")
    world.stopped.add("a")
    world.read(after=60)
    assert world.state("a") is NodeState.LIVE
    world.stopped.clear()
    world.read()
    assert {str(world.state(key)) for key in "abc"} == {"live"}


def test_reads_that_do_not_show_the_readers_own_beat_count_for_nothing() -> None:
    world = World("a", "b", "c")
    world.stopped |= {ME, "a"}
    world.run(30)
    assert world.state("a") is NodeState.LIVE
    world.stopped.remove(ME)
    world.run(1.5)
    assert world.state("a") is NodeState.DEAD


def test_slow_reads_count_by_their_time() -> None:
    world = World("a", "b", "c")
    world.stopped.add("a")
    for _ in range(3):
        world.read(after=0.5)
    assert world.state("a") is NodeState.DEAD


def test_draining_comes_from_the_beat_and_silence_is_stronger() -> None:
    world = World("a", "b", "c")
    world.draining.add("a")
    world.read()
    assert world.state("a") is NodeState.DRAINING
    world.stopped.add("a")
    world.run(0.9)
    assert world.state("a") is NodeState.SUSPECT


def test_a_member_that_never_beat_is_suspect_then_dead_and_does_not_count_among_the_others() -> None:
    world = World("a")
    world.detector.expect(world.now, ["left-behind/1", "left-behind/2", "left-behind/3"])
    assert world.state("left-behind/1") is NodeState.SUSPECT
    world.run(1.5)
    assert world.state("left-behind/1") is NodeState.DEAD
    world.stopped.add("a")
    world.run(1.5)
    assert world.state("a") is NodeState.DEAD


def test_a_key_that_vanished_from_the_map_is_silent() -> None:
    world = World("a", "b", "c")
    del world.seqs["a"]
    world.run(1.5)
    assert world.state("a") is NodeState.DEAD


def test_forgotten_processes_are_not_judged() -> None:
    world = World("a", "b")
    world.detector.forget("a")
    world.detector.forget("a")
    assert set(world.detector.keys()) == {"b"}
    with pytest.raises(KeyError):
        world.state("a")


@given(st.lists(st.sets(st.sampled_from("abcd")), max_size=60))
def test_whatever_happens_only_the_silent_are_dead_and_one_that_beats_is_live(schedule: list[set[str]]) -> None:
    world = World("a", "b", "c", "d")
    silent = dict.fromkeys("abcd", 0)
    for stopped in schedule:
        world.stopped = set(stopped)
        world.read()
        for key in "abcd":
            silent[key] = silent[key] + 1 if key in stopped else 0
            if silent[key] == 0:
                assert world.state(key) is NodeState.LIVE
            if world.state(key) is NodeState.DEAD:
                assert silent[key] >= 5
