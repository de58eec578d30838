"""The lines of NDJSON: cut from a body, events built of them, and the lines that answer them. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.context import GatewayContext
from gateway.receipts import LineProblem, ReceiptWriter, Summary, Tally, encoder, error_of
from shared.errors import CdrsError, ClientError, PayloadTooLarge
from shared.events import Draft, EventBuilder
from shared.jsonbytes import WHITE_SPACE

if TYPE_CHECKING:
    from gateway.placement import Pending
    from shared.records import Settlement

CHUNK_LINES = 256
"""Lines that are submitted together; other requests get a turn between two chunks."""
SHORT_BYTES = 64 * 1024
"""A body up to this length is waited for before the answer begins: it is on its way."""
HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"content-type", b"application/x-ndjson"),
)
"""Of the answer."""


class LineCutter:
    """Cuts a byte stream into lines. A line beyond the limit is dropped as it comes, not kept. Sans I/O."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines that are complete now, without their ends; None for one that was too long."""
        lines: list[bytes | None] = list(data.split(b"\n"))
        last = lines.pop()
        assert last is not None
        if lines and self._size:
            self._keep(lines[0] or b"")
            lines[0] = self._take()
        self._keep(last)
        return lines

    def finish(self) -> list[bytes | None]:
        """The last line, where the body ended without a line end behind it."""
        return [self._take()] if self._size else []

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= self._limit:
            self._parts.append(part)
        else:
            self._parts.clear()

    def _take(self) -> bytes | None:
        line = b"".join(self._parts) if self._size <= self._limit else None
        self._parts.clear()
        self._size = 0
        return line


@dataclass(slots=True)
class Chunk:
    """Lines that were submitted together."""

    first: int
    """Number of the first line."""
    items: Sequence[Draft | CdrsError | None]
    """For each line the event or what is wrong with it; None where it is empty."""
    drafts: Sequence[Draft]
    size: int
    """How many lines are not empty."""
    bytes: int
    pending: Pending | None = None


class Lines:
    """What has become of one request's lines."""

    def __init__(
        self, context: GatewayContext, builder: EventBuilder, receipts: ReceiptWriter, *, errors_only: bool
    ) -> None:
        self.tally = Tally()
        self.has_failed = False
        """A line was answered with a problem that a retry can help."""
        self._context = context
        self._builder = builder
        self._receipts = receipts
        self._errors_only = errors_only

    def build(self, raw: Sequence[bytes | None]) -> Chunk:
        """The hot path, mostly all lines at once."""
        builder, first = self._builder, self.tally.lines + 1
        builder.accepted_ms = self._context.clock.unix_ms()
        self.tally.lines += len(raw)
        lines = [line and line.strip(WHITE_SPACE) for line in raw]
        there = [line for line in lines if line]
        size = sum(map(len, there))
        drafts = builder.payloads(there) if len(there) == len(lines) else None
        if drafts is not None:
            return Chunk(first, drafts, drafts, len(drafts), size)
        items = [self._item(line, number) for number, line in enumerate(lines, first)]
        drafts = [item for item in items if isinstance(item, Draft)]
        return Chunk(first, items, drafts, sum(item is not None for item in items), size)

    def _item(self, line: bytes | None, number: int) -> Draft | CdrsError | None:
        if line is None:
            limit = self._context.settings.gateway.max_event_bytes
            return PayloadTooLarge(f"an event has at most {limit} bytes", limit=limit)
        try:
            return self._builder.line(line, number - 1) if line else None
        except CdrsError as error:
            return error

    def answers(self, chunk: Chunk, settlements: Sequence[Settlement]) -> bytes:
        """One line each."""
        if chunk.items is chunk.drafts and not self._errors_only and _are_new(settlements):
            self._count(len(settlements), 0, 0, 0)
            return self._receipts.lines(chunk.drafts, settlements)
        answers: list[bytes] = []
        receipt, errors_only = self._receipts.encoded, self._errors_only
        stored = duplicates = refused = failed = 0
        settled = iter(settlements)
        for number, item in enumerate(chunk.items, chunk.first):
            if item is None:
                continue
            if not isinstance(item, Draft):
                answers.append(line_of(LineProblem.of(number, item)))
                if isinstance(item, ClientError):
                    refused += 1
                else:
                    failed += 1
                    self.has_failed = True
                continue
            settlement = next(settled)
            if settlement.problem:
                failed += 1
                error = error_of(settlement, item.id)
                self.has_failed |= error.retry
                answers.append(line_of(LineProblem.of(number, error)))
                continue
            if settlement.duplicate:
                duplicates += 1
            else:
                stored += 1
            if not errors_only:
                answers.append(receipt(item.id, item.event.stream, settlement) + b"\n")
        self._count(stored, duplicates, refused, failed)
        return b"".join(answers)

    def _count(self, stored: int, duplicates: int, refused: int, failed: int) -> None:
        tally, ingested = self.tally, self._context.telemetry.ingested
        tally.stored += stored
        tally.duplicates += duplicates
        tally.failed += refused + failed
        ingested("stored", stored)
        ingested("duplicate", duplicates)
        ingested("refused", refused)
        ingested("failed", failed)

    def summary(self) -> bytes:
        """The last line."""
        return line_of(Summary(self.tally))


def _are_new(settlements: Sequence[Settlement]) -> bool:
    """Whether all are stored, and nothing is unusual about any."""
    return not [each for each in settlements if each.problem or each.duplicate or each.window_only]


def line_of(answer: LineProblem | Summary) -> bytes:
    """As it is sent."""
    return encoder.encode(answer) + b"\n"
