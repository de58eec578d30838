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
        was_lost = before in _LOST
        heard = seen if state in _LOST else self.of(key).heard if was_lost else now
        seconds = max(now - heard, 0.0)
        self._since[key] = Since(self._clock.unix_ms(), round(seconds * 1000), heard)
        was = before.value if before is not None else "unknown"
        how = f"last heard {seconds * 1000:.0f} ms ago"
        if state not in _LOST:
            how = f"{seconds * 1000:.0f} ms after it was last heard" if was_lost else "heard just now"
        logger.info("%s is %s, was %s; %s", key, state.value, was, how)
        return seconds

    def left(self, key: str) -> None:
        """It is no longer there."""
        if self._since.pop(key, None) is not None:
            logger.info("%s has left", key)
