"""Whether we have become slower: every figure as a ratio to a baseline of the same run, now and when last written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

TOLERANCE = 1.15
"""A ratio that is worse by more than this is a regression. Two runs of one commit differ by up to a tenth."""
BASELINES = ("F", "plain", "B0", "nchan", "centrifugo", "mercure")
"""In this order, the first one that was measured."""

Figures = Mapping[str, Mapping[str, float]]


def ratios(figures: Figures) -> dict[str, float]:
    """Figure → ours in units of the baseline's; without a baseline the figure as it is."""
    ours = figures.get("cdrs", {})
    found: dict[str, float] = {}
    for name, value in ours.items():
        by = next((figures[b][name] for b in BASELINES if figures.get(b, {}).get(name)), 1.0)
        found[name] = value / by
    return found


def compared(name: str, now: Figures, then: Mapping[str, Any] | None) -> Iterator[tuple[str, bool]]:
    """Lines for the terminal, and whether each tells of a regression. Less is better in every figure."""
    if then is None:
        yield f"{name}: nothing was written down to compare with", False
        return
    before = ratios(then["figures"])
    for figure, ratio in ratios(now).items():
        if before.get(figure, 0.0) <= 0:  # not measured, or so little that it was less than the noise
            continue
        is_worse = ratio > before[figure] * TOLERANCE
        word = "WORSE" if is_worse else "better" if ratio * TOLERANCE < before[figure] else "as it was"
        yield f"{name} {figure}: {before[figure]:.3g} x ({then['commit']}) -> {ratio:.3g} x: {word}", is_worse
