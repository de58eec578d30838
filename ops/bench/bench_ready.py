"""From the command to the first 200 of /readyz."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from cdrs_process import CdrsProcess
from machine import baseline_server, folder
from report import Result

RUNS = 5


def run(runs: int) -> Result:
    rows, singles, trios, plain = [], [], [], []
    for number in range(runs):
        started = time.monotonic()
        with baseline_server(cpus={0}):
            plain.append(time.monotonic() - started)
        singles.append(once(()))
        trios.append(once(("--nodes", "3")))
        rows.append([str(number + 1), f"{singles[-1]:.2f}", f"{trios[-1]:.2f}", f"{plain[-1]:.2f}"])
    return Result(
        ["run", "cdrs up, s", "cdrs up --nodes 3, s", "starlette on uvicorn, s"], rows,
        f"{statistics.median(singles):.2f} s in one process, {statistics.median(trios):.2f} s with three nodes "
        f"(medians of {runs})",
        f"{statistics.median(plain):.2f} s: the plain handlers under uvicorn",
        "<= 3 s",
    )  # fmt: skip


def once(args: Sequence[str]) -> float:
    """A new folder each time: making the log is part of it."""
    with folder() as path:
        cdrs = CdrsProcess(path, args)
        started = time.monotonic()
        try:
            cdrs.start()
            return time.monotonic() - started
        finally:
            cdrs.stop()
