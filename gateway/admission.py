"""Whether one more event would wait too long for its turn. Pure; no I/O, no clock.

A queue that is longer than its producers' patience helps nobody: everything in it is answered too late, and the work is
done all the same. So what would wait longer than `max_wait` at the pace of the last second is refused at once. Only a
queue that *moves* is judged: while a partition stands still (its node is being replaced, say) there is no pace, its
events wait within the bounds of memory, and right after it has gone on again what has gathered may be worked off.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

LOOK_INTERVAL = 0.05
"""Seconds a judgement holds."""
PACE_SECONDS = 1.0
"""The pace is that of so many seconds."""
STANDSTILL = 1.0
"""A partition with nothing settled for so long stands still."""
STEADY = 1.0
"""Seconds a partition must have moved before its queue says anything."""
FEW = 256
"""Events that may always wait."""
EVIDENCE = 0.25
"""Share of the longest wait that events must really have waited lately."""
SMOOTHING = 0.1


class Flow(Protocol):
    """`gateway.handing.Lane`, as far as it is judged."""

    settled_at: float
    """When something was last settled, or the first event came since all was; monotonic."""
    moving_since: float
    """Since when it has not stood still, monotonic."""

    @property
    def waiting(self) -> int:
        """Events in its queue."""
        ...


class Admission:
    """One gateway's judgement of its queues."""

    def __init__(self, max_wait: float) -> None:
        self.is_closed = False
        """Whether events are refused, as of the last look."""
        self.look_again = 0.0
        """When the next look is due, monotonic."""
        self._max_wait = max_wait
        self._settled = 0
        self._waited = 0.0
        self._history: deque[tuple[float, int]] = deque()

    def settled(self, flow: Flow, now: float, events: int, waited: float) -> None:
        """A handoff was settled, whose first event had waited for so many seconds."""
        if now - flow.settled_at > STANDSTILL:
            flow.moving_since = now
        flow.settled_at = now
        self._settled += events
        self._waited += SMOOTHING * (waited - self._waited)

    def look(self, now: float, flows: Iterable[Flow]) -> bool:
        """Judge anew; whether events are refused from now on."""
        self.look_again = now + LOOK_INTERVAL
        history = self._history
        history.append((now, self._settled))
        while len(history) > 2 and now - history[1][0] >= PACE_SECONDS:
            history.popleft()
        self.is_closed = False
        if self._waited > EVIDENCE * self._max_wait:
            waiting = sum(
                [
                    flow.waiting
                    for flow in flows
                    if now - flow.settled_at <= STANDSTILL and now - flow.moving_since >= STEADY
                ]
            )
            since, before = history[0]
            pace = (self._settled - before) / (now - since) if now > since else 0.0
            self.is_closed = waiting > max(FEW, pace * self._max_wait)
        return self.is_closed
