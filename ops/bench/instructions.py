"""Retired instructions of a server's user space: what time is when other work and clocks are taken out of it.

Counted by `perf stat`, where there is one and the machine has such counters; most virtual machines have none.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVENT = "instructions:u"
ATTACHED = 5.0
"""Seconds within which perf must have begun to count."""
MISSING = "retired instructions are not counted: perf, or the machine's counters, are missing; compare by CPU time"
COUNTED = "instructions: retired by the server's user space, as perf counts them"


@dataclass
class Count:
    """What was counted, once the interval is over; None where nothing can be."""

    value: float | None = None


def parsed(text: str, event: str = EVENT) -> float | None:
    """The count in what ``perf stat -x,`` wrote, summed where a machine has cores of several kinds; None where it is
    ``<not supported>`` or ``<not counted>``."""
    found: list[float] = []
    for line in text.splitlines():
        value, *fields = line.split(",")
        if len(fields) < 2 or event.partition(":")[0] not in fields[1]:
            continue
        try:
            found.append(float(value))
        except ValueError:
            continue
    return sum(found) if found else None


@functools.cache
def is_supported(event: str = EVENT) -> bool:
    """Whether this machine counts them."""
    if shutil.which("perf") is None:
        return False
    tried = subprocess.run(_stat(event, "--", "true"), env=_environment(), capture_output=True, text=True, check=False)
    return parsed(tried.stderr, event) is not None


def note() -> str:
    """For the notes of a benchmark."""
    return COUNTED if is_supported() else MISSING


def column() -> list[str]:
    """Of a table of deliveries: one more, where they are counted."""
    return ["instructions/delivery"] if is_supported() else []


def cell(said: Mapping[str, Any]) -> list[str]:
    """What stands in it, of a measurement of `fan_out.Loader`."""
    each = per_delivery(said)
    return [] if not is_supported() else ["-" if each is None else f"{each:,.0f}"]


def per_delivery(said: Mapping[str, Any]) -> float | None:
    counted: float | None = said.get("instructions")
    return None if counted is None else counted / max(1, said["deliveries"])


def middle(measured: Sequence[Mapping[str, Any]]) -> float | None:
    """The median for a delivery; None where it was not counted in every measurement."""
    known = [each for each in map(per_delivery, measured) if each is not None]
    return statistics.median(known) if known and len(known) == len(measured) else None


@contextmanager
def counting(pids: Sequence[int], event: str = EVENT) -> Iterator[Count]:
    """Count what these processes retire, all their threads, meanwhile."""
    count = Count()
    if not is_supported(event):
        yield count
        return
    process = subprocess.Popen(
        _stat(event, "-p", ",".join(map(str, pids))), env=_environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        _wait_until_it_counts(process)
        yield count
    finally:
        process.send_signal(signal.SIGINT)  # it prints, and ends
        try:
            _, text = process.communicate(timeout=ATTACHED)
            count.value = parsed(text, event)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _stat(event: str, *rest: str) -> list[str]:
    return ["perf", "stat", "-x,", "-e", event, *rest]


def _environment() -> dict[str, str]:
    """Figures without a language's separators."""
    return {**os.environ, "LC_ALL": "C"}


def _wait_until_it_counts(process: subprocess.Popen[str]) -> None:
    """Its counters are files of its own: it has begun when it has them."""
    files = Path("/proc") / str(process.pid) / "fd"
    deadline = time.monotonic() + ATTACHED
    while process.poll() is None and time.monotonic() < deadline:
        for file in files.glob("*"):
            try:
                if "perf_event" in str(file.readlink()):
                    return
            except OSError:
                continue
        time.sleep(0.005)
