"""Which partition an event belongs to, and which node a partition prefers. Pure functions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

DEFAULT_PARTITIONS = 12


def partition_of(stream: str, key: str | None, event_id: str, *, partitions: int, spread: int = 1) -> int:
    """The partition of an event: a pure function of stream and key (without key: of stream and id) in an epoch.

    A stream lives in one partition, or with ``spread`` n > 1 in n neighbouring ones.
    """
    home = _home(stream, partitions)
    if spread <= 1:
        return home
    slot = _hash64((key if key is not None else event_id).encode()) % min(spread, partitions)
    return (home + slot) % partitions


def partitions_of_stream(stream: str, *, partitions: int, spread: int = 1) -> tuple[int, ...]:
    """All partitions that events of a stream can be in."""
    home = _home(stream, partitions)
    return tuple((home + slot) % partitions for slot in range(min(max(spread, 1), partitions)))


@lru_cache(maxsize=65_536)
def _home(stream: str, partitions: int) -> int:
    return _hash64(stream.encode()) % partitions


def _hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def rendezvous(partition: int, nodes: Iterable[tuple[str, float]]) -> Sequence[str]:
    """Rank nodes for a partition by weighted rendezvous hashing, best first.

    ``nodes`` are (id, weight > 0). A node's share of first places is proportional to its weight, and a node that comes
    or goes moves only the partitions that it wins or held (Mosko, Schindelhauer: weighted HRW with -w / ln h).
    """
    scored: list[tuple[float, str]] = []
    for node_id, weight in nodes:
        h = (_hash64(f"{partition}/{node_id}".encode()) + 1) / (2**64 + 2)
        scored.append((-weight / math.log(h), node_id))
    scored.sort(key=lambda item: (-item[0], item[1]))
    return [node_id for _, node_id in scored]
