"""Where a text stands that many answers share, before each of the frames of it that are kept.

Every frame is counted once, when somebody first asks for a place behind it; after that a place is a look-up, however
deep it lies. Pure; no I/O.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from gateway.gzip_body import Place


class Places:
    """Twelve bytes for each frame that has been counted."""

    __slots__ = ("_crcs", "_sizes")

    def __init__(self) -> None:
        # One entry more than there are counted frames: the place behind the last of them.
        self._crcs = array("I", [0])
        self._sizes = array("Q", [0])

    def at(self, number: int, frames: Sequence[bytes]) -> Place:
        """The place before a frame, by its index among those that are kept, or behind the last one."""
        crcs, sizes = self._crcs, self._sizes
        if number >= len(crcs):
            place = Place(crcs[-1], sizes[-1])
            for frame in frames[len(crcs) - 1 : number]:
                place = place.after(frame)
                crcs.append(place.crc)
                sizes.append(place.size)
        return Place(crcs[number], sizes[number])

    def forget(self, count: int) -> None:
        """So many frames are no longer kept; they have been counted."""
        del self._crcs[:count]
        del self._sizes[:count]
