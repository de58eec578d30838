"""What the adapter tells those who count, log and show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shared.backends.kafka.codec import Cause


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class KafkaHooks:
    """Called on the event loop; must return at once and not raise."""

    waiting: Callable[[str], None] = _ignore
    """Opening waits for the cluster: what is missing."""
    foreign: Callable[[int, int, Cause, bytes], None] = _ignore
    """A record that is not ours was skipped: partition, offset, cause, its value (or, where it could not be read, the
    batch it is in). Each tail that meets it tells of it."""
    skipped: Callable[[Cause, int], None] = _ignore
    """So many records were skipped for this cause; once for each batch."""
    replaced: Callable[[str, str], None] = _ignore
    """A ``producer`` or a ``consumer`` was given up for another one: which, and why."""
