"""Many schedules, on all cores."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

from simulation.world import run_seed

AT_ONCE = 8
"""Schedules that are one piece of work: half a second, as a rule."""


class Done(NamedTuple):
    """A schedule that was run."""

    seed: int
    ok: bool
    events: int
    """That were acknowledged."""
    verdict: str
    cpu: float
    """Seconds."""


def schedules(first: int, seconds: float) -> Iterator[Done]:
    """Run seeds from the first on for so long, in processes of their own; give what came of each, in order."""
    cores = len(os.sched_getaffinity(0))
    until = time.monotonic() + seconds
    # Not forked: what this process has loaded and drawn so far must make no difference.
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_begin) as pool:
        under_way: deque[Future[list[Done]]] = deque()
        try:
            while under_way or time.monotonic() < until:
                while len(under_way) <= cores and time.monotonic() < until:
                    under_way.append(pool.submit(_run, first))
                    first += AT_ONCE
                yield from under_way.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children


def _run(first: int) -> list[Done]:
    found: list[Done] = []
    for seed in range(first, first + AT_ONCE):
        began = time.process_time()
        verdict = run_seed(seed).verdict
        found.append(Done(seed, verdict.ok, verdict.acknowledged, str(verdict), time.process_time() - began))
    return found
