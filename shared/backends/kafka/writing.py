"""One partition's way into the topic: one batch under way, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from shared.backends.kafka.client import BATCH_BYTES, CLIENT_ERRORS, describe, is_refusal
from shared.backends.kafka.codec import RECORD_OVERHEAD, Outgoing
from shared.backends.kafka.producing import Producer, Producers
from shared.clock import Clock
from shared.errors import LogAway, OutcomeUnknown, Unavailable
from shared.settings import KafkaSettings

BATCH_OVERHEAD: Final = 128
RETRY_AFTER: Final = 1.0
AWAY_AFTER: Final = 2.0
"""So many append timeouts after the first append that failed, while none has succeeded, the brokers count as away: a
new leader takes less. From then on an append that cannot be sent at once is refused, as waiting only adds to those that
wait."""
AT_ONCE: Final = 0.25
"""Seconds that it has for that: for a connected producer to say who leads, and for what was sent before it."""


class Refused(Unavailable):
    """The brokers will not take this batch; nothing of it was stored."""


class _Batch:
    """Records that go to the brokers in one piece, as often as it takes."""

    __slots__ = ("future", "is_again", "producer", "records", "sent", "was_sent")

    def __init__(self, records: Sequence[Outgoing]) -> None:
        self.records = records
        self.was_sent = False
        """Whether it may be in the log."""
        self.is_again = False
        """Whether it was sent more than once, so that it may be in the log more than once."""
        self.sent = 0.0
        """When it was given to its present producer, on the loop's clock."""
        self.producer: Producer | None = None
        self.future: asyncio.Future[Any] | None = None


class PartitionWriter:
    """Appends to one partition.

    A batch whose caller went away before it was settled stays the partition's first duty: whatever comes next waits
    for it, and if its producer is replaced it is sent again, unchanged, before anything newer.
    """

    def __init__(self, partition: int, producers: Producers, settings: KafkaSettings, clock: Clock) -> None:
        self._partition = partition
        self._producers = producers
        self._settings = settings
        self._clock = clock
        self._turn = asyncio.Lock()
        self._unsettled: _Batch | None = None
        self._failing_since: float | None = None
        """When the first of the appends began that have failed since one succeeded, on the loop's clock."""
        self._failed_at = 0.0
        """When the last of them failed: between them, not since, nothing was taken."""

    async def append(self, records: Sequence[Outgoing]) -> list[int | None]:
        """Append in order; returns the offset of each record, or None where the brokers did not tell the one place
        where it is.

        Raises `Unavailable` (nothing was or will be stored) or `OutcomeUnknown`.
        """
        started = asyncio.get_running_loop().time()
        deadline = send_by = started + self._settings.append_timeout
        is_away = self._is_away()
        if is_away:
            send_by = min(deadline, started + AT_ONCE)
        try:
            async with self._in_turn(send_by):
                await self._settle_earlier(send_by)
                offsets = await self._append(records, deadline, send_by)
        except Refused:
            raise
        except (Unavailable, OutcomeUnknown) as error:
            if self._failing_since is None:
                self._failing_since = started
            self._failed_at = asyncio.get_running_loop().time()
            if is_away and isinstance(error, Unavailable):
                raise LogAway(error.detail, retry_after=RETRY_AFTER) from error
            raise
        self._failing_since = None
        return offsets

    def _is_away(self) -> bool:
        since = self._failing_since
        return since is not None and self._failed_at - since >= AWAY_AFTER * self._settings.append_timeout

    async def _append(self, records: Sequence[Outgoing], deadline: float, send_by: float) -> list[int | None]:
        offsets: list[int | None] = []
        for number, piece in enumerate(cut(records)):
            batch = self._unsettled = _Batch(piece)
            try:
                first = await self._settle(batch, deadline, send_by if number == 0 else deadline)
            except Unavailable as error:
                if number:
                    raise OutcomeUnknown("only a part of the events was stored") from error
                raise
            finally:
                if not batch.was_sent:
                    self._unsettled = None
            offsets += [None] * len(piece) if first is None else range(first, first + len(piece))
        return offsets

    @asynccontextmanager
    async def _in_turn(self, deadline: float) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout_at(deadline):
                await self._turn.acquire()
        except TimeoutError as error:
            raise _earlier("is under way") from error
        try:
            yield
        finally:
            self._turn.release()

    async def _settle_earlier(self, deadline: float) -> None:
        if self._unsettled is None:
            return
        try:
            await self._settle(self._unsettled, deadline, deadline)
        except Refused:
            pass  # whoever asked for it was told that its outcome is unknown
        except OutcomeUnknown as error:
            raise _earlier("is not settled") from error

    async def _settle(self, batch: _Batch, deadline: float, send_by: float) -> int | None:
        """Bring a batch into the log; returns the offset of its first record, where that is known and no copy can be
        before it. What it leaves in `_unsettled` may be there or come there. ``send_by``: when it has to be sent for
        the first time."""
        loop = asyncio.get_running_loop()
        while True:
            if batch.future is None or batch.producer is None:
                await self._send(batch, deadline if batch.was_sent else send_by)
                continue
            until = min(deadline, batch.sent + self._settings.replace_after)
            await asyncio.wait(
                (batch.future, batch.producer.ended),
                timeout=max(until - loop.time(), 0),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if batch.future.done():
                error = _error_of(batch.future)
                if error is None:
                    self._unsettled = None
                    offset = int(batch.future.result().offset)
                    return offset if offset >= 0 and not batch.is_again else None
                self._take_back(batch, describe(error))
                if is_refusal(error):
                    self._unsettled = None
                    if batch.is_again:  # the first copy may be in the log, or come there
                        raise OutcomeUnknown(f"the brokers refuse the events: {describe(error)}")
                    raise Refused(f"the brokers refuse the events: {describe(error)}", retry_after=RETRY_AFTER)
            elif batch.producer.ended.done():
                self._take_back(batch, "its producer has ended")
            elif loop.time() >= deadline:
                raise OutcomeUnknown("the brokers did not answer in time", retry_after=RETRY_AFTER)
            else:
                self._take_back(batch, f"no answer for {self._settings.replace_after:g} s")

    async def _send(self, batch: _Batch, deadline: float) -> None:
        try:
            producer = await self._producers.get(deadline)
        except Unavailable as error:
            raise self._not_sent(batch, error.detail) from error
        try:
            async with asyncio.timeout_at(deadline):
                batch.future = await producer.send(self._partition, batch.records, self._clock.unix_ms())
        except TimeoutError as error:
            raise self._not_sent(batch, "the topic's leaders are not known") from error
        except CLIENT_ERRORS as error:
            self._producers.retire(producer, describe(error))
            await asyncio.sleep(0)
        except ValueError as error:
            self._unsettled = None
            raise Refused("an event is larger than the log takes") from error
        else:
            batch.is_again = batch.was_sent
            batch.producer, batch.was_sent = producer, True
            batch.sent = asyncio.get_running_loop().time()

    def _not_sent(self, batch: _Batch, detail: str) -> Unavailable | OutcomeUnknown:
        if batch.was_sent:
            return OutcomeUnknown(detail, retry_after=RETRY_AFTER)
        self._unsettled = None
        return Unavailable(detail, retry_after=RETRY_AFTER)

    def _take_back(self, batch: _Batch, reason: str) -> None:
        if batch.producer is not None:
            self._producers.retire(batch.producer, f"partition {self._partition}: {reason}")
        batch.producer = batch.future = None


def cut(records: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
    """Consecutive records as the batches they are sent in."""
    first = size = 0
    for number, record in enumerate(records):
        more = len(record.value) + RECORD_OVERHEAD + (len(record.key) if record.key else 0)
        if number > first and size + more > BATCH_BYTES - BATCH_OVERHEAD:
            yield records[first:number]
            first, size = number, 0
        size += more
    if first < len(records):
        yield records[first:] if first else records


def _error_of(future: asyncio.Future[Any]) -> BaseException | None:
    return asyncio.CancelledError() if future.cancelled() else future.exception()


def _earlier(what: str) -> Unavailable:
    return Unavailable(f"an earlier append to this partition {what}; Kafka may lack a quorum", retry_after=RETRY_AFTER)
