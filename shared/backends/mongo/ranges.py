"""Ranges of offsets, [first, stop) each, ascending and apart. Pure."""

from __future__ import annotations

from collections.abc import Sequence

Range = tuple[int, int]


def joined(ranges: Sequence[Range]) -> list[Range]:
    """Ranges that touch or overlap as one; empty ones are left out."""
    found: list[Range] = []
    for first, stop in ranges:
        if first >= stop:
            continue
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        else:
            found.append((first, stop))
    return found


def within(ranges: Sequence[Range], others: Sequence[Range]) -> list[Range]:
    """What of the ranges lies in the others."""
    pairs = [(max(first, low), min(stop, high)) for first, stop in ranges for low, high in others]
    return [(first, stop) for first, stop in pairs if first < stop]


def without(ranges: Sequence[Range], others: Sequence[Range]) -> list[Range]:
    """What of the ranges lies in none of the others."""
    found: list[Range] = []
    for first, stop in ranges:
        at = first
        for low, high in within([(first, stop)], others):
            if low > at:
                found.append((at, low))
            at = high
        if at < stop:
            found.append((at, stop))
    return found
