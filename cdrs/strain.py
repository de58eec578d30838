"""Which partitions a node serves badly although it lives: gateways then ask others first. Pure; no I/O, no clock."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

STILL_LOOKS = 2
"""Looks in a row without progress, or with too much waiting, before it is believed."""
BEHIND_SHARE = 4
"""More than a window divided by this behind the log: others should serve the partition."""
CAUGHT_UP_SHARE = 16
"""Less than a window divided by this: it may come back."""
CROWDED = 0.75
ROOMY = 0.25
"""Shares of the room for waiting events: from the upper on others should serve, below the lower one they need not."""


class Strain:
    """Judges by looks at regular intervals, each of which must be told to it. What is believed once holds until the
    opposite is clear, so that partitions do not swing to and fro."""

    def __init__(self, *, window: int) -> None:
        self._behind = window // BEHIND_SHARE
        self._caught_up = window // CAUGHT_UP_SHARE
        self._positions: dict[int, int] = {}
        self._still: dict[int, int] = {}
        """Partition → looks in a row at which the log had more than was read, and nothing had been read since."""
        self._slow: set[int] = set()
        self._silent = 0
        """Looks in a row that the log did not answer."""
        self._full = 0
        self._is_crowded = False

    def look(self, positions: Mapping[int, int], lag: Mapping[int, int]) -> None:
        """The log was asked: where reading stands in each partition, and how much more there is."""
        self._silent = 0
        for partition, position in positions.items():
            behind = lag.get(partition, 0)
            is_still = behind > 0 and self._positions.get(partition) == position
            self._still[partition] = self._still.get(partition, 0) + 1 if is_still else 0
            if self._still[partition] >= STILL_LOOKS or behind > self._behind:
                self._slow.add(partition)
            elif not is_still and behind <= self._caught_up:
                self._slow.discard(partition)
        self._positions = dict(positions)

    def silence(self) -> None:
        """The log was asked and did not answer."""
        self._silent += 1

    def fill(self, share: float) -> None:
        """How much of the room for events that wait for the log is taken."""
        self._full = self._full + 1 if share >= CROWDED else 0
        if self._full >= STILL_LOOKS:
            self._is_crowded = True
        elif share <= ROOMY:
            self._is_crowded = False

    def partitions(self, everything: Iterable[int], broken: Collection[int]) -> list[int]:
        """What others should serve; ``broken`` partitions are always among it."""
        if self._is_crowded or self._silent >= STILL_LOOKS:
            return list(everything)
        return sorted(self._slow.union(broken))
