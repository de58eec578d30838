"""Ticks: what looks around at one interval, or at a multiple of it, does so at one moment."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hand_clock import HandClock

from shared.clock import SystemClock, to_tick


@pytest.mark.parametrize("interval", [0.05, 0.25, 0.3, 1.0])
def test_it_comes_once_in_an_interval(interval: float) -> None:
    clock, ticks = HandClock(), list[float]()
    clock.now = 1000.123
    for _ in range(50):
        pause = to_tick(interval, clock)
        assert interval / 4 <= pause <= interval * 5 / 4
        clock.now += pause - 0.0004  # timers may be a moment early
        ticks.append(clock.now)
    gaps = [after - before for before, after in pairwise(ticks)]
    assert gaps == pytest.approx([interval] * 49, abs=0.001)


def test_multiples_meet() -> None:
    clock = HandClock()
    for clock.now in (3.0, 3.07, 3.4, 3.81):
        ticks = {interval: clock.now + to_tick(interval, clock) for interval in (0.25, 0.5, 1.0)}
        for tick in ticks.values():
            assert (tick - ticks[0.25]) / 0.25 == pytest.approx(round((tick - ticks[0.25]) / 0.25))


def test_processes_have_ticks_of_their_own() -> None:
    one, other = HandClock(), HandClock()
    other.phase = 0.2
    assert to_tick(1.0, one) - to_tick(1.0, other) == pytest.approx(0.2)
    assert to_tick(1.0, one, phase=0.2) == to_tick(1.0, other)
    assert SystemClock().phase != SystemClock().phase
