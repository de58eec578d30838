"""What a reader asked for and does not get: never a silent hole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from shared.position import CursorWriter, Epoch
from shared.records import FeedBatch, HistoryPage
from shared.sse import control_block


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that a reader asked for and does not get."""

    reason: Literal["retention", "epoch", "damage", "cursor-invalid", "cursor-future", "not-in-cursor"]
    resumes_at: str
    """The cursor at which reading goes on."""
    partition: int | None = None
    """None: not in one partition."""
    start: int | None = None
    """First offset that is missing."""
    stop: int | None = None
    """First offset that is there again."""
    lost: int | None = None
    """How many events are missing; None: nobody knows."""

    def detail(self) -> dict[str, Any]:
        """As it stands in ``cdrs.gap`` and in pages; offsets are strings, as in receipts."""
        return {
            "reason": self.reason,
            "partition": self.partition,
            "from": None if self.start is None else str(self.start),
            "to": None if self.stop is None else str(self.stop),
            "lost": self.lost,
            "resumes_at": self.resumes_at,
        }

    def block(self) -> bytes:
        """As it is told on a stream."""
        return control_block("cdrs.gap", self.detail())


Loss = Literal["retention", "damage"]
"""Why history has not got what stood somewhere: deleted on purpose, or lost."""


def loss(epoch: Epoch, reason: Loss, partition: int, start: int, stop: int) -> Gap:
    """History has not got what stood in [start, stop)."""
    return Gap(reason, CursorWriter(epoch, {partition: stop}).text(), partition, start, stop)


def losses(page: HistoryPage | FeedBatch) -> list[tuple[Loss, int, int]]:
    """What a page or batch covers and has not got, ascending."""
    if not page.missing and not page.deleted:
        return []
    found: list[tuple[Loss, int, int]] = [("damage", start, stop) for start, stop in page.missing]
    for start, stop in page.deleted:
        found.append(("retention", start, stop))
    return sorted(found, key=lambda each: each[1])
