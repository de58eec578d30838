"""The failure detector: who is alive, judged by changes of sequence numbers over successful reads. No I/O, no clock.

A process is *live* while its number moves, *suspect* after some missed beats or when somebody's connection to it broke,
*dead* after some seconds of silence, *draining* when its own beat says so. Three things keep the reader from trusting
its own blindness:

- Silence is counted in successful reads. A read that comes late counts as one (two beats of silence at most), so a
  reader that was stopped for a minute declares nobody dead when it wakes up. A read that does not even show the
  reader's own latest beat counts as none.
- When more than half of the others, and at least two, fall silent *together* (the last news of each within two reads),
  it is more likely that the registry lost sight of them than that all died: the last picture is held, for ``hold``
  seconds of silence at most. One of one counts, one of three counts, two of three one after the other count.
- When the registry has lost everybody (`spare`), as a cluster that comes back empty has, the last picture is held until
  they have had time to be back: one finds the way some seconds before another.
- A broken connection is evidence of its own: whoever is known by it neither is held nor counts as one of those others.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

TOGETHER_READS = 2
"""Two processes fell silent together if their last news came within so many reads of each other."""
LATE_READ_BEATS = 2
"""A single read never counts for more silence than this many beats."""
HOLD_FACTOR = 20
"""The last picture is held for at most this many times ``dead_after``."""


class NodeState(enum.StrEnum):
    """What is thought of a process."""

    LIVE = "live"
    SUSPECT = "suspect"
    DEAD = "dead"
    DRAINING = "draining"


@dataclass(slots=True)
class _Peer:
    seen: float
    """When its number last moved, or when it was first expected; the reader's monotonic clock."""
    read: int
    """The read at which that was."""
    seq: int = -1
    """Its last number; -1 = it was never heard."""
    missed: int = 0
    """Reads without news."""
    silent: float = 0.0
    """Seconds of silence that count."""
    held: float = 0.0
    """Seconds of silence that do not, because the picture is held."""
    broken: int | None = None
    """Its number when a connection to it broke."""
    draining: bool = False
    dead_since: float | None = None


class Detector:
    """Judges the others from one reader's point of view."""

    def __init__(
        self, me: str, *, interval: float, suspect_after: int, dead_after: float, hold: float | None = None
    ) -> None:
        """``me`` is the reader's own key, never judged. ``interval`` is the time between two beats, seconds."""
        self._me = me
        self._interval = interval
        self._suspect_after = suspect_after
        self._dead_after = dead_after
        self._hold = HOLD_FACTOR * dead_after if hold is None else hold
        self._peers: dict[str, _Peer] = {}
        self._reads = 0
        self._last_read: float | None = None
        self._own = -1
        self._spared_until = float("-inf")

    def keys(self) -> Collection[str]:
        """Everybody who is watched."""
        return self._peers.keys()

    def expect(self, now: float, keys: Iterable[str]) -> None:
        """Watch these too. Whoever has never been heard is suspect, and dead in due time."""
        for key in keys:
            if key != self._me and key not in self._peers:
                self._peers[key] = _Peer(seen=now, read=self._reads)

    def forget(self, key: str) -> None:
        """Stop watching. Idempotent."""
        self._peers.pop(key, None)

    def spare(self, until: float) -> None:
        """Until then nobody's silence counts who was there before, unless a connection to it broke."""
        self._spared_until = until

    def observe(self, now: float, seqs: Mapping[str, int], *, draining: Collection[str] = ()) -> None:
        """Take one successful read: the sequence number of each process in the heartbeat map, and which say that they
        are draining."""
        self._reads += 1
        counts = self._is_current(seqs)
        credit = 0.0
        if self._last_read is not None:
            credit = min(now - self._last_read, LATE_READ_BEATS * self._interval)
        self._last_read = now
        quiet: list[_Peer] = []
        self.expect(now, seqs)
        for key, peer in self._peers.items():
            seq = seqs.get(key, -1)
            if seq > peer.seq:
                self._heard(peer, now, seq)
            elif counts:
                quiet.append(peer)
            if seq >= 0:
                peer.draining = key in draining
        if quiet:
            self._count_silence(now, quiet, credit)

    def _is_current(self, seqs: Mapping[str, int]) -> bool:
        own = seqs.get(self._me)
        if own is None:
            return self._own < 0
        moved = own > self._own
        self._own = own
        return moved

    def _heard(self, peer: _Peer, now: float, seq: int) -> None:
        peer.seen, peer.read, peer.seq = now, self._reads, seq
        peer.missed, peer.silent, peer.held, peer.dead_since = 0, 0.0, 0.0, None
        if peer.broken is not None and seq > peer.broken + 1:
            peer.broken = None

    def _count_silence(self, now: float, quiet: list[_Peer], credit: float) -> None:
        others = [peer for peer in self._peers.values() if self._is_witness(peer)]
        is_spared = now < self._spared_until
        for peer in quiet:
            if (is_spared and self._is_witness(peer)) or (
                peer.missed + 1 >= self._suspect_after and self._is_held(peer, others)
            ):
                peer.held += credit
                continue
            peer.missed += 1
            peer.silent += credit
            # A quarter of a beat: reads jitter, and the fifth of five must not miss the mark by a millisecond.
            if peer.dead_since is None and peer.silent >= self._dead_after - self._interval / 4:
                peer.dead_since = now

    def _is_witness(self, peer: _Peer) -> bool:
        return peer.seq >= 0 and peer.dead_since is None and peer.broken is None

    def _is_held(self, peer: _Peer, others: list[_Peer]) -> bool:
        if not self._is_witness(peer) or peer.held >= self._hold:
            return False
        together = sum(
            1
            for other in others
            if other.missed >= min(2, self._suspect_after - 1) and abs(other.read - peer.read) <= TOGETHER_READS
        )
        return together >= 2 and together * 2 > len(others)

    def break_link(self, key: str) -> None:
        """A connection to this process broke: it is suspect at once, until it is heard of again.

        A first beat after the break clears the suspicion, but not the evidence: it may have been written before.
        """
        peer = self._peers.get(key)
        if peer is not None:
            peer.broken = peer.seq

    def state(self, key: str) -> NodeState:
        """What is thought of a process. Raises ``KeyError`` for one that is not watched."""
        peer = self._peers[key]
        if peer.dead_since is not None:
            return NodeState.DEAD
        is_broken = peer.broken is not None and peer.seq <= peer.broken
        if peer.seq < 0 or is_broken or peer.missed >= self._suspect_after:
            return NodeState.SUSPECT
        return NodeState.DRAINING if peer.draining else NodeState.LIVE

    def seen(self, key: str) -> float:
        """When a process was last heard, or first expected; the reader's monotonic clock."""
        return self._peers[key].seen

    def dead_for(self, now: float, key: str) -> float:
        """Seconds since a process was declared dead; 0 for all others."""
        peer = self._peers.get(key)
        return 0.0 if peer is None or peer.dead_since is None else now - peer.dead_since
