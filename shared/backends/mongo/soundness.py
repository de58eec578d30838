"""Whether every offset below the checkpoint has its document, without reading them all each time.

A page of certain streams reads only their documents, so it cannot see that one is missing. The positions of the
stretch it covers are therefore counted by the server, and what was found whole is believed for a while.
"""

from __future__ import annotations

from collections import OrderedDict

BLOCK = 4096
"""Offsets that are believed together."""
MOST_AT_ONCE = 16 * BLOCK
"""Offsets that one page of certain streams covers at most, as that many documents may have to be counted for it."""
BELIEVED = 60.0
"""Seconds."""
MOST_BLOCKS = 8192


class Soundness:
    """Stretches that were found whole, by partition. Pure."""

    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[int, int], tuple[int, int, float]] = OrderedDict()
        """(partition, number of the block) → whole from, to, believed until."""

    def unsure(self, partition: int, low: int, high: int, now: float) -> tuple[int, int] | None:
        """The part of [low, high), seen from its ends, of which nothing is believed; None where all of it is."""
        while low < high:
            whole = self._whole(partition, low // BLOCK, now)
            if whole is None or not whole[0] <= low < whole[1]:
                break
            low = whole[1]
        while low < high:
            whole = self._whole(partition, (high - 1) // BLOCK, now)
            if whole is None or not whole[0] < high <= whole[1]:
                break
            high = whole[0]
        return (low, high) if low < high else None

    def found(self, partition: int, low: int, high: int, now: float) -> None:
        """[low, high) is whole."""
        for block in range(low // BLOCK, (high - 1) // BLOCK + 1):
            first, last = max(low, block * BLOCK), min(high, (block + 1) * BLOCK)
            known, until = self._whole(partition, block, now), now + BELIEVED
            if known is not None and known[0] <= last and first <= known[1]:
                first, last, until = min(first, known[0]), max(last, known[1]), known[2]
            self._blocks[partition, block] = first, last, until
            self._blocks.move_to_end((partition, block))
        while len(self._blocks) > MOST_BLOCKS:
            self._blocks.popitem(last=False)

    def _whole(self, partition: int, block: int, now: float) -> tuple[int, int, float] | None:
        known = self._blocks.get((partition, block))
        return known if known is not None and known[2] > now else None
