"""Whether we have become slower: every figure as a ratio to a baseline of the same run, now and when last written.

Two runs may come from different machines, or hours, so figures are compared only in units of a server that both runs
measured, or where they are ratios within their run already. All else is said not to be comparable, and fails nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TOLERANCE = 1.15
"""A ratio that is worse by more than this is a regression. Two runs of one commit differ by up to a tenth."""
BASELINES = ("F", "plain", "identity", "nothing missed", "B0", "nchan", "centrifugo", "mercure", "zlib 4")
"""In this order, the first one that both runs have."""
SATURATED_MS = 1_000.0
"""Runs that do not say who was saturated: a server whose p99 is longer was."""
TIMED, COUNTED = "us/", "instructions/"
"""How figures of CPU time begin, and those of the same in retired instructions: preferred where both runs have them."""

Figures = Mapping[str, Mapping[str, float]]
Kept = Mapping[str, Any]
"""What is kept of a run: ``figures``, and who was ``saturated``."""


def is_ratio(figure: str) -> bool:
    """Whether the figure is a quotient of two that were measured in one run."""
    return figure.endswith("ratio") or " / " in figure


def saturated(run: Kept) -> set[str]:
    """Servers that were given more than they could take: their figures are of a queue."""
    if "saturated" in run:
        return set(run["saturated"])
    return {server for server, of in run["figures"].items() if of.get("p99_ms", 0.0) > SATURATED_MS}


def common(figure: str, now: Kept, then: Kept) -> tuple[str | None, str]:
    """The baseline that both runs have for a figure; where there is none, why."""
    full = saturated(now) | saturated(then)
    if "cdrs" in full:
        return None, "the server was saturated"
    both = [by for by in BASELINES if all(run["figures"].get(by, {}).get(figure, 0.0) > 0 for run in (now, then))]
    able = [by for by in both if by not in full]
    if able:
        return able[0], ""
    return None, f"{both[0]} was saturated" if both else "no common baseline"


def compared(name: str, now: Kept, then: Kept | None) -> Iterator[tuple[str, bool]]:
    """Lines for the terminal, and whether each tells of a regression. Less is better in every figure."""
    if then is None:
        yield f"{name}: nothing was written down to compare with", False
        return
    before, ours = then["figures"].get("cdrs", {}), now["figures"].get("cdrs", {})
    known = [figure for figure in ours if before.get(figure, 0.0) > 0]  # else not measured, or less than the noise
    for figure in known:
        if _is_told_by_instructions(figure, known, now, then):
            continue
        by, why = (None, "") if is_ratio(figure) else common(figure, now, then)
        if why:
            yield f"{name} {figure}: not comparable: {why}", False
            continue
        old, new = (run["figures"]["cdrs"][figure] / (run["figures"][by][figure] if by else 1.0) for run in (then, now))
        is_worse = new > old * TOLERANCE
        word = "WORSE" if is_worse else "better" if new * TOLERANCE < old else "as it was"
        unit = f" x {by}" if by else ""
        yield f"{name} {figure}: {old:.3g}{unit} ({then['commit']}) -> {new:.3g}{unit}: {word}", is_worse


def _is_told_by_instructions(figure: str, known: Sequence[str], now: Kept, then: Kept) -> bool:
    """Whether both runs have the same in retired instructions."""
    counted = figure.replace(TIMED, COUNTED, 1)
    return figure.startswith(TIMED) and counted in known and common(counted, now, then)[0] is not None
