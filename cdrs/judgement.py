"""Which records of a partition are visible: a pure function of the log. No I/O, no clock, no loop.

Only logs that do not decide identity themselves need it. A record carries `Record.base`, the offset its node's tail had
reached when it looked the identity up and found it absent. With the window W, a record at offset o is

* **void** if o - base > W, or its base belongs to another epoch (then `base` is `FOREIGN_BASE`): its look-up is too old
  to be trusted, so it is never shown and never acknowledged, and its sender looks up and appends again;
* a **duplicate** if a record of its identity that is not void lies in [o - W, o);
* **visible** otherwise.

Why nothing is visible twice: were o1 < o2 both visible copies, then o1 < o2 - W <= base2, so the look-up made for o2
covered o1 and would have found it. W therefore only has to span look-up to append, and no clock is involved.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence

import msgspec

from shared.records import Record

FOREIGN_BASE = -1
"""What an adapter puts into `Record.base` where the record was looked up in another epoch."""
UNKNOWN = -1
"""`Verdict.first` of a duplicate whose visible original lies before everything this judge has read."""


class Kind(enum.IntEnum):
    """How a record was judged."""

    VISIBLE = 0
    DUPLICATE = 1
    VOID = 2


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The judgement of one record."""

    kind: Kind
    first: int
    """Offset of the visible record of this identity (a visible record's own), or `UNKNOWN`; meaningless where void."""
    append_ms: int
    """Append time of that record."""


_VOID = Verdict(Kind.VOID, UNKNOWN, 0)


class Sighting(msgspec.Struct, gc=False):
    """What the index keeps of an identity."""

    first: int
    """Offset of the visible record, or `UNKNOWN`."""
    last: int
    """Offset of the latest record that is not void; what the duplicate rule looks at."""
    append_ms: int
    """Append time of the visible record."""
    body: int
    """`body_hash` of the visible record."""


def body_hash(key: str | None, value: bytes) -> int:
    """Stands for key and value when a repeated id is compared with its original. Good within one process only."""
    return hash((key, value))  # also written out in `Judge.judge`


class Judge:
    """Judges one partition, in offset order, and remembers the identities that look-ups ask for.

    To judge from offset s on exactly, begin W earlier, or at the first record that was ever written (``whole``).
    """

    __slots__ = ("_identities", "_index", "_offsets", "_sure", "_window", "is_complete", "next")

    def __init__(self, window: int, *, start: int, whole: bool = False) -> None:
        self.next = start
        """First offset not yet judged."""
        self.is_complete = whole and start == 0
        """Whether the index covers its partition from the epoch's very first record on, so that what it lacks is not in
        that partition, below the checkpoint or above."""
        self._window = window
        self._sure = start if whole else start + window
        self._index: dict[bytes, Sighting] = {}
        # In order of offsets. Two queues: as many pairs cost the garbage collector a third of the tail's time.
        self._offsets: deque[int] = deque()
        self._identities: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._index)

    def judge(self, records: Sequence[Record], *, upto: int) -> list[Verdict]:
        """Judge the records that follow; ``upto`` is the first offset behind them (a tail batch's ``next``)."""
        verdicts: list[Verdict] = []
        window, sure, index = self._window, self._sure, self._index
        visible = Kind.VISIBLE
        for record in records:
            # every record of the log passes here: what is usual costs as little as can be
            offset, base, identity = record.offset, record.base, record.identity
            if base < 0 or offset - base > window:
                verdicts.append(_VOID)
                continue
            self._offsets.append(offset)
            self._identities.append(identity)
            append_ms = record.append_ms
            known = index.get(identity)
            if known is not None and offset - known.last <= window:
                known.last = offset
                verdicts.append(Verdict(Kind.DUPLICATE, known.first, known.append_ms))
                continue
            # Without the W offsets before it, a record may be a copy of one that was not read; its kind is then unsure.
            first = offset if offset >= sure else UNKNOWN
            index[identity] = Sighting(first, offset, append_ms, hash((record.key, record.value)))
            verdicts.append(Verdict(visible, offset, append_ms))
        self.next = upto
        return verdicts

    def lookup(self, identity: bytes) -> Sighting | None:
        """What is known of an identity, as of `next`: the base for whoever appends because it is None.

        None means absent from the index's range (see `forget`); what lies below it is the store's to answer.
        """
        return self._index.get(identity)

    def forget(self, checkpoint: int) -> None:
        """Drop identities below min(checkpoint, next - W): those the store answers for and no judgement needs."""
        floor = min(checkpoint, self.next - self._window)
        offsets, identities, index = self._offsets, self._identities, self._index
        while offsets and offsets[0] < floor:
            offset, identity = offsets.popleft(), identities.popleft()
            self.is_complete = False
            if index[identity].last == offset:
                del index[identity]
