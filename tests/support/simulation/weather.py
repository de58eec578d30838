"""What a seed stands for: how many processes, which faults when, and how often things go wrong by themselves."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass
class Weather:
    """How often things go wrong by themselves. All of it is off once the world heals."""

    random: random.Random
    slow: float = 0.002
    refuse: float = 0.0
    unanswered: float = 0.0
    late: float = 0.0
    tail_break: float = 0.0
    lost: float = 0.0
    """A message between two processes is lost, with its connection."""
    twice: float = 0.0
    behind: float = 0.0
    """Longest way of a feed's batch, in seconds: gateways are at different places of the log."""
    cuts: bool = True
    """Batches are cut anywhere."""

    @classmethod
    def draw(cls, of: random.Random) -> Weather:
        def some(most: float) -> float:
            return of.choice((0.0, 0.0, most / 3, most))

        return cls(
            of, slow=of.choice((0.001, 0.005, 0.03)), refuse=some(0.1), unanswered=some(0.15), late=some(0.15),
            tail_break=some(0.02), lost=some(0.06), twice=some(0.1), behind=some(0.6),
        )  # fmt: skip

    def hits(self, chance: float) -> bool:
        return chance > 0 and self.random.random() < chance

    def delay(self) -> float:
        return self.random.random() * self.slow

    def lateness(self) -> float:
        return self.random.choice((0.01, 0.3, 1.5, 4.0)) * self.random.random()

    def piece(self, most: int) -> int:
        return self.random.randint(1, most) if self.cuts and most > 1 else most

    def calm(self) -> None:
        self.slow = 0.001
        self.behind = 0.0
        self.refuse = self.unanswered = self.late = self.tail_break = self.lost = self.twice = 0.0
        self.cuts = False


@dataclass
class Plan:
    """What a seed stands for, apart from chance on the way."""

    nodes: int
    gateways: int
    partitions: int
    decides_identity: bool
    publishers: int
    readers: int
    requests: int
    faults: list[tuple[float, str]] = field(default_factory=list)

    @classmethod
    def draw(cls, of: random.Random) -> Plan:
        plan = cls(
            nodes=of.choice((1, 2, 2, 3)), gateways=of.choice((1, 2)), partitions=of.choice((1, 1, 2)),
            decides_identity=of.random() < 0.3, publishers=of.choice((2, 3)), readers=of.choice((1, 2, 2)),
            requests=of.choice((4, 8, 12)),
        )  # fmt: skip
        at = 0.0
        for _ in range(of.randint(1, 4)):
            at += of.random() * 1.2
            plan.faults.append((at, of.choice(FAULTS)))
        return plan


FAULTS = (
    "node crash", "node crash", "node pause", "node pause", "node blind", "gateway crash", "gateway pause", "cut",
    "log away", "store away", "registry away", "registry wipe", "node drain", "gateway drain",
)  # fmt: skip
