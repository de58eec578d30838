"""Since when each process is in its state, as one reader sees it, and how long it took to find that out."""

from __future__ import annotations

import logging

import msgspec

from shared.clock import Clock
from shared.detector import NodeState

_LOST = frozenset({NodeState.SUSPECT, NodeState.DEAD})

logger = logging.getLogger(__name__)


class Since(msgspec.Struct, frozen=True):
    """When a process came into its state."""

    since_ms: int
    """When that was found; milliseconds since 1970."""
    took_ms: int
    """Suspect or dead: how long after it was last heard. Live or draining after that: how long it was away. Else 0."""
    heard: float
    """When it was last heard before; the reader's monotonic clock."""


class StateTimes:
    """All of them. Says each change in the log."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = Since(clock.unix_ms(), 0, clock.monotonic())
        self._since: dict[str, Since] = {}

    def of(self, key: str) -> Since:
        """Of a process that nobody spoke of: since this reader began."""
        return self._since.get(key, self._began)

    def changed(self, key: str, before: NodeState | None, state: NodeState, seen: float) -> float:
        """It was found in another state, and was last heard at ``seen``; returns how many seconds that took."""
        now = self._clock.monotonic()
        if state in _LOST:
            heard, how = seen, "last heard {} ms ago"
        elif before in _LOST:
            heard, how = self.of(key).heard, "{} ms after it was last heard"
        else:
            heard, how = now, "heard just now"
        seconds = max(now - heard, 0.0)
        since = self._since[key] = Since(self._clock.unix_ms(), round(seconds * 1000), heard)
        was = before.value if before is not None else "unknown"
        logger.info("%s is %s, was %s; %s", key, state.value, was, how.format(since.took_ms))
        return seconds

    def left(self, key: str) -> None:
        """It is no longer there."""
        if self._since.pop(key, None) is not None:
            logger.info("%s has left", key)
