"""Dead letters: what stands in the log and is not ours, kept as events of the server's own stream `STREAM`.

Every node that reads such a record would write the same event: its identity is the record's position and its bytes are
a pure function of the record, so however many nodes do, one is visible.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import orjson

from cdrs.tasks import Wakeup
from shared.clock import Clock
from shared.errors import ClientError, ServerError
from shared.partitioning import partition_of
from shared.position import Epoch
from shared.records import DataKind, ForeignRecord, NewEvent, Settlement, identity_of
from shared.telemetry import LetterResult, Telemetry

STREAM = "cdrs.dead.log"
SOURCE = "/cdrs/log"
TYPE = "cdrs.dead-letter"
MAX_BYTES = 1024 * 1024
"""What a letter holds of a record's bytes; ``cdrssize`` says how many there were."""
PATIENCE = 3.0
"""Seconds that nodes wait which do not come first for the record's partition: by then the letter is mostly there."""
MOST_WAITING = 1000
MOST_WAITING_BYTES = 16 * 1024 * 1024
"""Letters that wait for the log; whichever comes first."""
PIECE = 100
"""Letters handed to the log at once."""
WRITE_TIMEOUT = 10.0
RETRY = 1.0
"""Pause after the log took none, in seconds."""
SAY_EVERY = 10.0
"""Seconds between two words on letters that were dropped."""
SHARE_BYTES = 64 * 1024
"""A letter counts once more for every so many bytes of its record."""
_BURST = 10.0
_DATA_BASE64 = b',"data_base64":'
_OURS = f'"cdrsstream":"{STREAM}"'.encode()
_HEAD = 1024

Append = Callable[[Epoch, int, Sequence[NewEvent]], Awaitable[Sequence[Settlement]]]

logger = logging.getLogger(__name__)


def letter_of(record: ForeignRecord, epoch: Epoch, accepted_ms: int) -> NewEvent:
    """The event that tells of a record: its bytes as ``data_base64``, the cause as ``cdrscause``. Pure: of one record,
    every node makes the same bytes."""
    event_id = f"{epoch}-{record.partition}-{record.offset}"
    attributes = {
        "specversion": "1.0",
        "id": event_id,
        "source": SOURCE,
        "type": TYPE,
        "cdrscause": record.cause,
        "cdrssize": len(record.raw),
        "cdrsstream": STREAM,
    }
    head = orjson.dumps(attributes)[:-1] + _DATA_BASE64
    value = b'%b"%b"}' % (head, base64.b64encode(record.raw[:MAX_BYTES]))
    return NewEvent(
        identity_of(STREAM, SOURCE, event_id), STREAM, None, value, len(head), int(DataKind.BASE64), accepted_ms
    )


class _Letter(NamedTuple):
    due: float
    event: NewEvent


class DeadLetters:
    """Writes a letter for each foreign record that a node meets, through the node's ordinary ingest.

    Bounded: so many a second, so many waiting; what is beyond is counted (``cdrs_dead_letters_total``) and said in the
    log, and every record is counted in any case. Never about a letter: a copy of one that somebody wrote into the log
    is counted only, so letters cannot breed.
    """

    def __init__(
        self,
        epoch: Epoch,
        partitions: int,
        append: Append,
        clock: Clock,
        *,
        rate: int,
        preferred: Callable[[int], bool],
        telemetry: Telemetry | None = None,
    ) -> None:
        """``rate``: letters a second. ``preferred``: whether this node comes first for a partition."""
        self._epoch = epoch
        self._home = partition_of(STREAM, None, "", partitions=partitions)
        self._append = append
        self._clock = clock
        self._rate = float(rate)
        self._preferred = preferred
        self._telemetry = telemetry
        self._now: deque[_Letter] = deque()
        self._later: deque[_Letter] = deque()
        self._waiting_bytes = 0
        self._allowance = self._rate * _BURST
        self._counted_at = clock.monotonic()
        self._dropped = 0
        self._said_at = float("-inf")
        self._wakeup = Wakeup()

    def take(self, record: ForeignRecord) -> None:
        """A tail met this. Returns at once."""
        if self._telemetry is not None:
            self._telemetry.foreign_record(record.cause)
        if _OURS in record.raw[:_HEAD]:
            return
        if not self._has_room(record):
            self._drop()
            return
        now = self._clock.monotonic()
        event = letter_of(record, self._epoch, self._clock.unix_ms())
        self._waiting_bytes += len(event.value)
        if self._preferred(record.partition):
            self._now.append(_Letter(now, event))
        else:
            self._later.append(_Letter(now + PATIENCE, event))
        self._wakeup.set()

    async def run(self) -> None:
        """Write what waits, until cancelled."""
        while True:
            queue = self._due()
            if queue is not None:
                if not await self._write(queue):
                    await asyncio.sleep(RETRY)
            else:
                due = self._later[0].due - self._clock.monotonic() if self._later else SAY_EVERY
                await self._wakeup.wait(max(due, 0.01))

    def _has_room(self, record: ForeignRecord) -> bool:
        now = self._clock.monotonic()
        earned = (now - self._counted_at) * self._rate
        self._allowance = min(self._allowance + earned, self._rate * _BURST)
        self._counted_at = now
        price = 1 + len(record.raw) // SHARE_BYTES
        waiting = len(self._now) + len(self._later)
        if self._allowance < price or waiting >= MOST_WAITING or self._waiting_bytes >= MOST_WAITING_BYTES:
            return False
        self._allowance -= price
        return True

    def _drop(self) -> None:
        self._count("dropped")
        self._dropped += 1
        now = self._clock.monotonic()
        if now - self._said_at >= SAY_EVERY:
            logger.warning("too many records that are not ours: %d were skipped without a dead letter", self._dropped)
            self._dropped, self._said_at = 0, now

    def _due(self) -> deque[_Letter] | None:
        if self._now:
            return self._now
        return self._later if self._later and self._later[0].due <= self._clock.monotonic() else None

    async def _write(self, queue: deque[_Letter]) -> bool:
        """Hand on the next of a queue; False where the log takes none now, and they wait on."""
        letters = [queue[at] for at in range(min(PIECE, len(queue)))]
        try:
            settled = await self._append(self._epoch, self._home, [letter.event for letter in letters])
        except ServerError as error:
            logger.debug("dead letters wait: %s", error)
            return False
        except ClientError as error:
            settled = [Settlement(problem=error.problem, detail=error.detail)] * len(letters)
        for letter, settlement in zip(letters, settled, strict=True):
            queue.popleft()
            self._waiting_bytes -= len(letter.event.value)
            self._count("refused" if settlement.problem else "known" if settlement.duplicate else "stored")
        refused = [settlement for settlement in settled if settlement.problem]
        if refused:
            logger.warning("%d dead letters were refused: %s", len(refused), refused[0].detail or refused[0].problem)
        return True

    def _count(self, result: LetterResult) -> None:
        if self._telemetry is not None:
            self._telemetry.dead_letters(result)
