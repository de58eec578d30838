"""What the copies of the log's partitions lack, in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from shared.offers import Replicas

MOST_NAMED = 12


def replicas_trouble(replicas: Mapping[int, Replicas]) -> str:
    """Which brokers are behind or gone, and for which partitions; empty where every copy is in sync, or none is known
    of."""
    behind: dict[int, list[int]] = {}
    for partition, each in sorted(replicas.items()):
        for broker in each.all - each.in_sync:
            behind.setdefault(broker, []).append(partition)
    return "; ".join(f"broker {broker} is not in sync for {_named(found)}" for broker, found in sorted(behind.items()))


def _named(partitions: list[int]) -> str:
    names = ", ".join(map(str, partitions[:MOST_NAMED]))
    more = len(partitions) - MOST_NAMED
    return f"partitions {names}" + (f" and {more} more" if more > 0 else "")
