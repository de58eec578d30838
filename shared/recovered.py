"""What was found in a log that is checked or recovered, and what was done about it. Plain structures; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.position import Epoch


@dataclass(slots=True)
class Findings:
    """What stands in a log."""

    epoch: Epoch | None = None
    """None: it cannot be read."""
    partitions: int = 0
    created_ms: int = 0
    damage: str = ""
    """What is wrong with the file as such; empty where nothing is."""
    events: int = 0
    floors: dict[int, int] = field(default_factory=dict[int, int])
    ends: dict[int, int] = field(default_factory=dict[int, int])
    holes: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    """Partition, first offset, first offset that is there again: lost before, and known."""
    lost: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    """The same of what was not known to be lost."""

    @property
    def is_sound(self) -> bool:
        """Whether the file is as it should be."""
        return self.epoch is not None and not self.damage and not self.lost


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found, and what was done."""

    name: str
    """Of the log, for people."""
    findings: Findings
    beyond: Sequence[tuple[int, int, int]]
    """Partition, its end, and the end that it once had."""
    epoch: Epoch | None
    """The new one; None: it was only looked at."""
    kept_as: Path | None = None
    """Where the damaged file is now."""
