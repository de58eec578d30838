"""What one process knows of how far a log has come; shared by its writers and tails. No I/O."""

from __future__ import annotations


class Progress:
    """Per partition, how far this process has seen the log."""

    __slots__ = ("append_ms", "ends")

    def __init__(self, partitions: int) -> None:
        self.ends = [0] * partitions
        """The offset behind the last record that is known to be there."""
        self.append_ms = [0] * partitions
        """The latest append time that any tail has read."""

    def stored(self, partition: int, end: int) -> None:
        """The log has at least this."""
        self.ends[partition] = max(end, self.ends[partition])

    def read(self, partition: int, end: int, append_ms: int) -> None:
        """A tail has read up to here."""
        self.ends[partition] = max(end, self.ends[partition])
        self.append_ms[partition] = max(append_ms, self.append_ms[partition])
