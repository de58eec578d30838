"""The simulation's share in the normal tests: schedules hold, seeds replay exactly, and planted bugs are found."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from simulation.loop import Deadlock, Livelock, VirtualLoop, simulate
from simulation.planted import BUGS
from simulation.world import run_seed

SUPPORT = Path(__file__).resolve().parents[1] / "support"
SHARE = 120
"""Schedules in the normal tests; `scripts/faults --simulate` runs as many as one likes."""
RAREST = "end-not-read"
"""The planted bug that one schedule in a thousand shows."""


@pytest.mark.parametrize("part", range(3))
def test_a_share_of_the_schedules_holds(part: int) -> None:
    for seed in range(part * SHARE // 3, (part + 1) * SHARE // 3):
        outcome = run_seed(seed)
        assert outcome.verdict.ok, f"scripts/faults --simulate --seed {seed}: {outcome.verdict}"


def test_schedules_are_not_trivial() -> None:
    """What the verdicts rest on: events, resumes, duplicates and faults did happen."""
    lines = [line for seed in range(40) for line in run_seed(seed, keep_trace=True).lines]
    faults = ("('crash'", "('pause'", " late'", "('open'", "('persist'", "cdrs.caught-up", "cdrs.bye", "('answer'")
    for what in (*faults, "('expire'", "('trim'", "'cdrs.gap'"):
        assert sum(what in line for line in lines) >= 3, what


@pytest.mark.parametrize("seed", [3, 14, 15, 92])
def test_a_seed_replays_exactly(seed: int) -> None:
    first = run_seed(seed, keep_trace=True)
    second = run_seed(seed, keep_trace=True)
    assert first.lines == second.lines
    assert first.fingerprint == second.fingerprint
    assert run_seed(seed + 1).fingerprint != first.fingerprint


def test_a_seed_replays_in_another_process() -> None:
    code = "import sys; from simulation.world import run_seed; print([run_seed(s).fingerprint for s in range(8)])"
    prints = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(SUPPORT), "PYTHONHASHSEED": salt},
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout
        for salt in ("1", "2")
    }  # fmt: skip
    assert prints == {f"{[run_seed(s).fingerprint for s in range(8)]}\n"}


@pytest.mark.parametrize(
    ("bug", "seconds"),
    [
        pytest.param(name, 300, marks=[pytest.mark.slow, pytest.mark.timeout(600)]) if name == RAREST else (name, 60)
        for name in BUGS
    ],
)
def test_a_planted_bug_is_found_soon(bug: str, seconds: float) -> None:
    began = time.process_time()
    with BUGS[bug]():
        for seed in range(10_000):
            if not run_seed(seed).verdict.ok:
                break
            assert time.process_time() - began < seconds, f"{bug} was not found in {seed + 1} schedules"
    assert run_seed(seed).verdict.ok, "without the bug the same schedule holds"


def test_virtual_time_jumps_and_knows_when_nothing_will_happen() -> None:
    async def sleeper(loop: VirtualLoop) -> float:
        await asyncio.sleep(3600)
        return loop.time()

    assert simulate(1, sleeper) == pytest.approx(3600)

    async def stuck(_: VirtualLoop) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        simulate(1, stuck)

    async def spinning(_: VirtualLoop) -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Livelock):
        simulate(1, spinning)
