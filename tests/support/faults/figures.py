"""What each injected fault cost, out of the same histories as the verdict."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from faults.history import Record

CUT_SHORT = ("torn", "not read")
"""Why producers have no receipt that did not mean to get one."""


class Figures(NamedTuple):
    """What one fault cost, seen from outside; seconds. None where there was nothing to see."""

    name: str
    target: str
    detection: float | None
    """Until the registry's picture told of it."""
    failover: float | None
    """From the fault to the first receipt of a request that was sent after it."""
    gap: float | None
    """Longest time without any receipt, from the fault to the next one's start."""
    silence: float | None
    """Longest time in which no subscriber was given anything, in the same while."""
    failed: int
    """Events that got an error or no answer in the same while, but for those of producers that cut their requests."""


class _Times(NamedTuple):
    """Of everything that happened, each in order; nanoseconds."""

    acks: list[int]
    answered: list[tuple[int, int]]
    """When what has a receipt was sent, and when that came."""
    seen: list[int]
    failed: list[int]


def figures(actors: Iterable[Sequence[Record]]) -> list[Figures]:
    """One line for each injected fault, in order of time."""
    acks: list[int] = []
    sent: dict[tuple[str, Any], int] = {}
    answered: list[tuple[int, int]] = []
    seen: list[int] = []
    failed: list[int] = []
    faults: list[Record] = []
    told: list[Record] = []
    for own in actors:
        for record in own:
            kind = record["type"]
            if kind == "invoke":
                sent.setdefault((record["actor"], record["op"]), record["t"])
            elif kind == "ok":
                acks.append(record["t"])
                answered.append((sent.get((record["actor"], record["op"]), record["t"]), record["t"]))
            elif kind == "recv":
                seen.append(record["t"])
            elif kind in ("fail", "info") and record.get("why") not in CUT_SHORT:
                failed.append(record["t"])
            elif kind == "fault" and record["phase"] == "start":
                faults.append(record)
            elif kind == "told":
                told.append(record)
    faults.sort(key=lambda record: record["t"])
    for each in (acks, answered, seen, failed):
        each.sort()
    times = _Times(acks, answered, seen, failed)
    return [_figures(fault, _stop_of(faults, at), times, told) for at, fault in enumerate(faults)]


def _stop_of(faults: Sequence[Record], at: int) -> int:
    return int(faults[at + 1]["t"]) if at + 1 < len(faults) else 2**62


def _figures(fault: Record, until: int, times: _Times, told: Sequence[Record]) -> Figures:
    start = fault["t"]
    answered = times.answered
    meanwhile = answered[bisect_left(answered, (start,)) : bisect_left(answered, (until,))]
    first = min((end for _, end in meanwhile), default=None)
    news = min((r["t"] for r in told if start <= r["t"] < until and r["target"] == fault["target"]), default=None)
    return Figures(
        fault["name"],
        fault["target"],
        _seconds(None if news is None else news - start),
        _seconds(None if first is None else first - start),
        _seconds(_longest(times.acks, start, until)),
        _seconds(_longest(times.seen, start, until)),
        bisect_left(times.failed, until) - bisect_left(times.failed, start),
    )


def _longest(times: Sequence[int], start: int, until: int) -> int | None:
    """The longest time between two of these, from the last one before ``start`` on."""
    near = times[max(bisect_right(times, start) - 1, 0) : bisect_left(times, until)]
    return max((b - max(a, start) for a, b in pairwise(near) if b > start), default=None)


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9
