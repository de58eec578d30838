"""The watch over clients that take nothing, on a clock that a test moves."""

from __future__ import annotations

from hand_clock import HandClock

from gateway.stalls import StallWatch


class Client:
    def __init__(self, left: int) -> None:
        self.left = left
        self.was_cut = False

    def outstanding(self) -> int:
        return self.left

    def cut(self) -> None:
        self.was_cut = True


def test_only_who_makes_no_progress_is_cut() -> None:
    clock = HandClock()
    watch = StallWatch(clock, 30.0)
    stuck, slow, back = Client(1000), Client(1000), Client(1000)
    for client in (stuck, slow, back):
        watch.add(client)
    clock.now += 20
    slow.left = 999
    watch.look()
    watch.discard(back)
    clock.now += 15
    watch.look()
    assert (stuck.was_cut, slow.was_cut, back.was_cut) == (True, False, False)
    clock.now += 14
    watch.look()
    assert not slow.was_cut
    clock.now += 2
    watch.look()
    assert slow.was_cut
    assert len(watch) == 0
