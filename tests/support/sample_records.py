"""Records as the log would hold them, made by hand for unit tests."""

from __future__ import annotations

import orjson

from shared.records import DataKind, FeedBatch, Record, identity_of


def record(
    offset: int,
    *,
    partition: int = 0,
    stream: str = "orders",
    data: bytes = b'{"n":1}',
    kind: DataKind = DataKind.JSON,
    append_ms: int | None = None,
    **attributes: object,
) -> Record:
    event_id = f"{partition}-{offset}"
    head = {"specversion": "1.0", "id": event_id, "source": "/test", "type": "edit", **attributes, "cdrsstream": stream}
    body = orjson.dumps(head)[:-1]
    member = b',"data_base64":' if kind == DataKind.BASE64 else b',"data":'
    value = body + b"}" if kind == DataKind.NONE else body + member + data + b"}"
    return Record(
        partition=partition,
        offset=offset,
        append_ms=1_000 + offset if append_ms is None else append_ms,
        identity=identity_of(stream, "/test", event_id),
        stream=stream,
        key=None,
        value=value,
        data_at=0 if kind == DataKind.NONE else len(body) + len(member),
        kind=kind,
        accepted_ms=999,
    )


def batch(*records: Record, partition: int = 0, start: int | None = None, upto: int | None = None) -> FeedBatch:
    first = records[0].offset if start is None else start
    last = records[-1].offset + 1 if upto is None else upto
    return FeedBatch(partition, first, last, list(records))
