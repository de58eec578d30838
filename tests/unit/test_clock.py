"""Ticks: what looks around at one interval, or at a multiple of it, does so at one moment."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest

from shared.clock import to_tick


@pytest.mark.parametrize("interval", [0.05, 0.25, 0.3, 1.0])
def test_it_comes_once_in_an_interval(interval: float) -> None:
    now, ticks = 1000.123, list[float]()
    for _ in range(50):
        pause = to_tick(interval, now)
        assert interval / 4 <= pause <= interval * 5 / 4
        now += pause - 0.0004  # timers may be a moment early
        ticks.append(now)
    gaps = [after - before for before, after in pairwise(ticks)]
    assert gaps == pytest.approx([interval] * 49, abs=0.001)


def test_multiples_meet() -> None:
    for begun in (3.0, 3.07, 3.4, 3.81):
        ticks = {interval: begun + to_tick(interval, begun) for interval in (0.25, 0.5, 1.0)}
        for tick in ticks.values():
            assert (tick - ticks[0.25]) / 0.25 == pytest.approx(round((tick - ticks[0.25]) / 0.25))


def test_processes_have_ticks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set[float]()
    for process in range(4000, 4016):
        monkeypatch.setattr(os, "getpid", lambda number=process: number)
        found.add(round((5.0 + to_tick(1.0, 5.0)) % 1, 3))
    apart = sorted(found)
    assert len(apart) == 16
    assert min(b - a for a, b in pairwise(apart)) > 0.02
