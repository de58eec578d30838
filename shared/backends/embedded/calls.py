"""What waits for the writer: one object for each call, shared by the event loop and the writer's thread."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Sequence

from shared.records import Duplicate, NewEvent

_OVERHEAD = 512
"""Bytes that an event costs beyond its value while it waits; a round figure."""


Answer = Sequence[Duplicate | None] | Exception
"""What a call gets."""


class CallState(enum.Enum):
    """Who may still decide about a call."""

    WAITING = enum.auto()
    """Whoever asked may take it back: nothing was stored."""
    CLAIMED = enum.auto()
    """A transaction holds it: the outcome is unknown until that has ended."""
    WITHDRAWN = enum.auto()
    """Taken back: it will not be stored."""


class Call:
    """Something to be written, and the promise of an answer."""

    __slots__ = ("_lock", "_state", "_told", "deadline", "size")

    def __init__(self, *, deadline: float, size: int, told: Callable[[Answer], None] | None = None) -> None:
        """``told`` hears the answer, on the event loop."""
        self.deadline = deadline
        """On ``time.monotonic``: not written later than this."""
        self.size = size
        self._told = told
        self._lock = threading.Lock()
        self._state = CallState.WAITING

    def tell(self, answer: Answer) -> None:
        """Loop: give the answer; the first one counts."""
        told, self._told = self._told, None
        if told is not None:
            told(answer)

    def when_told(self, told: Callable[[Answer], None]) -> None:
        """Loop: have this called with the answer."""
        self._told = told

    def claim(self) -> bool:
        """Writer: take it into a transaction. False: it was taken back."""
        return self._move(CallState.WAITING, CallState.CLAIMED)

    def release(self) -> None:
        """Writer: the transaction did not come about."""
        self._move(CallState.CLAIMED, CallState.WAITING)

    def withdraw(self) -> bool:
        """Loop: take it back. False: too late."""
        return self._move(CallState.WAITING, CallState.WITHDRAWN)

    def _move(self, before: CallState, after: CallState) -> bool:
        with self._lock:
            if self._state is not before:
                return False
            self._state = after
            return True


class AppendCall(Call):
    """`EventLog.append`."""

    __slots__ = ("base", "events", "partition")

    def __init__(
        self,
        partition: int,
        events: Sequence[NewEvent],
        *,
        base: int,
        deadline: float,
        told: Callable[[Answer], None] | None = None,
    ) -> None:
        size = sum([len(event.value) for event in events]) + _OVERHEAD * len(events)
        super().__init__(deadline=deadline, size=size, told=told)
        self.partition = partition
        self.events = events
        self.base = base


class CreateCall(Call):
    """`EventStore.create_stream`."""

    __slots__ = ("name", "spread")

    def __init__(self, name: str, spread: int, *, deadline: float) -> None:
        super().__init__(deadline=deadline, size=_OVERHEAD)
        self.name = name
        self.spread = spread


Outcome = tuple[Call, Answer]
