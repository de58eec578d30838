"""What two ports offer beside themselves: many partitions in one call, answered by calls, so that a lone event costs
neither a task nor a future."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from shared.errors import CdrsError
from shared.position import Epoch
from shared.records import Entry, NewEvent, Settlement

Appended = Callable[[Sequence[Entry] | Exception], None]
"""Told how an append ended: what `EventLog.append` returns or raises."""


@runtime_checkable
class DirectLog(Protocol):
    """What a log that decides identity may offer beside `EventLog`: many partitions' appends in one call."""

    def append_all(self, appends: Sequence[tuple[int, Sequence[NewEvent], Appended]]) -> None:
        """`EventLog.append` for each, told by its call: once, on this event loop, maybe before this returns. The log
        commits together what it was given together, where it can. The calls must not fail; they may append again."""
        ...


HandedOver = tuple[int, Sequence[NewEvent], Callable[[Sequence[Settlement] | CdrsError], None]]
"""A partition, events, and who is told how they ended: their settlements, or what `Handoff.append` would raise."""


@runtime_checkable
class DirectHandoff(Protocol):
    """What a link may offer beside `Handoff`: many partitions in one call, and neither a task nor a future for any of
    them. The node's own object has it, and the link over HTTP, for which one call is one request."""

    @property
    def commits_together(self) -> bool:
        """Whether what is handed over in one call is made durable as one. Then a caller that waits for all of it before
        it hands over more shares the cost between more events."""
        ...

    def hand_over(self, epoch: Epoch, handoffs: Sequence[HandedOver], *, timeout: float) -> None:
        """`Handoff.append` for each, whose answer comes by its call: once, on this event loop, within ``timeout``,
        maybe before this returns. Partitions are independent: each is answered as soon as it is settled. The calls must
        not fail; they may hand over again."""
        ...
