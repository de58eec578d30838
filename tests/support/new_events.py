"""Events as a gateway would hand them over, and their records read back."""

from __future__ import annotations

from collections.abc import Sequence

from shared.ports import EventLog
from shared.records import DataKind, NewEvent, Record, identity_of

SOURCE = "/tests"


def event(
    event_id: str,
    *,
    stream: str = "orders",
    source: str = SOURCE,
    data: bytes = b"1",
    key: str | None = None,
    spread: int = 1,
    fresh: bool = False,
) -> NewEvent:
    head = f'{{"specversion":"1.0","id":"{event_id}","source":"{source}","cdrsstream":"{stream}","data":'.encode()
    return NewEvent(
        identity=identity_of(stream, source, event_id),
        stream=stream,
        key=key,
        value=head + data + b"}",
        data_at=len(head),
        kind=DataKind.JSON,
        accepted_ms=1_234,
        spread=spread,
        fresh=fresh,
    )


def events(first: int, stop: int, *, stream: str = "orders") -> list[NewEvent]:
    return [event(str(number), stream=stream) for number in range(first, stop)]


async def read(log: EventLog, partition: int, *, start: int = 0, stop: int | None = None) -> list[Record]:
    """Everything of a partition up to its present end, by a tail of its own."""
    end = (await log.ends())[partition] if stop is None else stop
    records: list[Record] = []
    tail = log.tail({partition: start})
    try:
        while start + len(records) < end:
            batches = await tail.poll(max_records=1000, timeout=5)
            assert batches, f"nothing more than {len(records)} of {end - start} records within 5 s"
            for batch in batches:
                assert (batch.partition, batch.start) == (partition, start + len(records))
                assert [record.offset for record in batch.records] == list(range(batch.start, batch.next))
                records += batch.records
    finally:
        await tail.close()
    return records


def as_sent(record: Record) -> NewEvent:
    """What was sent, as far as a record keeps it."""
    return NewEvent(
        record.identity,
        record.stream,
        record.key,
        record.value,
        record.data_at,
        record.kind,
        record.accepted_ms,
    )


def same(records: Sequence[Record], sent: Sequence[NewEvent]) -> bool:
    """Whether these records are those events, in this order."""
    return [as_sent(record).value for record in records] == [one.value for one in sent]
