"""Receipts: the answers to produced events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from gateway.problems import problem_document
from shared.errors import BY_PROBLEM, CdrsError, InternalError
from shared.position import Epoch, PartitionCursors, partition_cursors
from shared.records import Settlement

if TYPE_CHECKING:
    from shared.events import Draft

encoder = msgspec.json.Encoder()

_INTERNAL = frozenset({"stale-epoch", "stale-stream", "link-broken"})
"""Problems among our own processes; to a producer they mean that the event was not stored."""


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """An event is stored. Members in the order of the documentation."""

    id: str
    stream: str
    cursor: str
    """What somebody resumes from who has seen exactly up to this event."""
    epoch: str
    partition: int
    offset: str
    """A string: JavaScript rounds integers above 2^53."""
    duplicate: bool
    dedupe: Literal["window"] | msgspec.UnsetType = msgspec.UNSET
    """``window``: the store was away, so only the last records in a node's memory were searched for a copy."""


class ReceiptWriter:
    """Makes the receipts of one epoch."""

    __slots__ = ("_cursors", "_epoch", "_epoch_text", "_templates")

    def __init__(self, epoch: Epoch) -> None:
        self._epoch = epoch
        self._epoch_text = str(epoch)
        self._cursors: dict[int, PartitionCursors] = {}
        self._templates: dict[int, tuple[PartitionCursors, bytes]] = {}
        """Partition → its cursors, and the JSON of its receipts but for what differs: id, stream, cursor, offset."""

    def receipt(self, event_id: str, stream: str, settlement: Settlement) -> Receipt:
        """For an event that was settled without a problem."""
        partition, offset = settlement.partition, settlement.offset
        cursors = self._cursors.get(partition)
        if cursors is None:
            cursors = self._cursors[partition] = partition_cursors(self._epoch, partition)
        text, duplicate = cursors.text_at(offset + 1), settlement.duplicate
        if settlement.window_only:
            return Receipt(event_id, stream, text, self._epoch_text, partition, str(offset), duplicate, "window")
        return Receipt(event_id, stream, text, self._epoch_text, partition, str(offset), duplicate)

    def encoded(self, event_id: str, stream: str, settlement: Settlement) -> bytes:
        """`receipt` as JSON, for a third of the price."""
        if settlement.duplicate or settlement.window_only:
            return encoder.encode(self.receipt(event_id, stream, settlement))
        offset = settlement.offset
        cursors, template = self._templates.get(settlement.partition) or self._template(settlement.partition)
        return template % (encoder.encode(event_id), stream.encode(), cursors.bytes_at(offset + 1), offset)

    def lines(self, drafts: Sequence[Draft], settlements: Sequence[Settlement]) -> bytes:
        """`encoded` of many, each with a line feed behind it; they are new, and nothing is unusual about any."""
        lines: list[bytes] = []
        encode, known = encoder.encode, self._templates.get
        for draft, settlement in zip(drafts, settlements, strict=True):
            offset = settlement.offset
            cursors, template = known(settlement.partition) or self._template(settlement.partition)
            written = encode(draft.id), draft.event.stream.encode(), cursors.bytes_at(offset + 1), offset
            lines.append(template % written)
        lines.append(b"")
        return b"\n".join(lines)

    def _template(self, partition: int) -> tuple[PartitionCursors, bytes]:
        sample = encoder.encode(Receipt("@", "%b", "%b", self._epoch_text, partition, "%d", duplicate=False))
        template = sample.replace(b'"@"', b"%b", 1)  # the id comes with its quotes
        found = self._templates[partition] = partition_cursors(self._epoch, partition), template
        return found


def error_of(settlement: Settlement, event_id: str) -> CdrsError:
    """What a settlement with a problem means to the producer. Where a retry can help the error names the id to repeat
    the event with, which the server may have made."""
    name = "unavailable" if settlement.problem in _INTERNAL else settlement.problem
    kind = BY_PROBLEM.get(name, InternalError)
    return kind(settlement.detail, id=event_id) if kind.retry else kind(settlement.detail)


def refusal_of(error: CdrsError, event_id: str) -> CdrsError:
    """One event's share of an error that met several."""
    return type(error)(error.detail, retry_after=error.retry_after, id=event_id) if error.retry else error


class ItemProblem(msgspec.Struct, frozen=True):
    """An item of a batch that was not stored."""

    index: int
    """Its place in the batch, from 0."""
    status: int
    problem: Mapping[str, Any]

    @classmethod
    def of(cls, index: int, error: CdrsError) -> ItemProblem:
        """Pack an error."""
        return cls(index, error.status, problem_document(error))


class LineProblem(msgspec.Struct, frozen=True):
    """A line of NDJSON that was not stored."""

    line: int
    """Its number, from 1; empty lines count."""
    problem: Mapping[str, Any]

    @classmethod
    def of(cls, line: int, error: CdrsError) -> LineProblem:
        """Pack an error."""
        return cls(line, problem_document(error))


class Tally(msgspec.Struct):
    """How many events of a request ended how."""

    lines: int = 0
    stored: int = 0
    duplicates: int = 0
    failed: int = 0


class Summary(msgspec.Struct, frozen=True):
    """The last line of an NDJSON answer; where it is missing, the request was cut off."""

    summary: Tally
