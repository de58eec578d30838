"""What is known of streams' spreads. They never change within an epoch, so what was read once stays true. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from shared.errors import StaleStream

MOST_STREAMS = 65_536


class SpreadCache:
    """Stream → spread, for the streams used last."""

    def __init__(self, most: int = MOST_STREAMS) -> None:
        self._most = most
        self._spreads: OrderedDict[str, int] = OrderedDict()

    def learn(self, spreads: Mapping[str, int]) -> None:
        """Take what was read."""
        self._spreads.update(spreads)
        while len(self._spreads) > self._most:
            self._spreads.popitem(last=False)

    def check(self, spreads: Mapping[str, int]) -> list[str]:
        """Those of the streams that are not known. Raises `StaleStream` for one that is known with another spread."""
        unknown: list[str] = []
        for stream, spread in spreads.items():
            known = self._spreads.get(stream)
            if known is None:
                unknown.append(stream)
            elif known != spread:
                raise StaleStream(f"the stream's spread is {known}, not {spread}")
            else:
                self._spreads.move_to_end(stream)
        return unknown
