"""The components of `/openapi.json`: schemas, parameters and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.openapi_parts import Json, record, ref
from shared.position import Epoch, cursor_after

_EPOCH = Epoch(1, 0x9F3A22C1)
EXAMPLE_CURSOR = cursor_after(_EPOCH, 3, 17)
EXAMPLE_EVENT: Json = {
    "specversion": "1.0",
    "id": "0199f3a2-7c11-7d3e-8f0a-5b6c7d8e9f00",
    "source": "/v1/streams/orders.eu",
    "type": "order.placed",
    "cdrsstream": "orders.eu",
    "datacontenttype": "application/json",
    "data": {"order": 42, "total": "19.90"},
}
EXAMPLE_RECEIPT: Json = {
    "id": EXAMPLE_EVENT["id"],
    "stream": "orders.eu",
    "cursor": EXAMPLE_CURSOR,
    "epoch": str(_EPOCH),
    "partition": 3,
    "offset": "17",
    "duplicate": False,
}
EXAMPLE_STREAM: Json = {
    "name": "orders.eu",
    "spread": 1,
    "partitions": [3],
    "events": 18,
    "created": "2026-11-20T09:58:12.004Z",
    "last": {"cursor": EXAMPLE_CURSOR, "append_time": "2026-11-20T10:00:00.123Z"},
}
EXAMPLE_NODE: Json = {
    "id": "node-1",
    "incarnation": "5f0c2a9e",
    "role": "node",
    "url": "http://127.0.0.1:40123",
    "version": "0.1.0",
    "zone": "",
    "capacity": 2.0,
    "seq": 812,
    "cpu": 0.04,
    "memory_bytes": 61865984,
    "in_flight": 0,
    "ewma_ms": 1.9,
    "lag_records": 0,
    "connections": 1,
    "partitions": 12,
    "state": "live",
    "age_ms": 120,
    "since": "2026-11-28T09:12:44.310Z",
    "took_ms": 0,
    "preferred": [0, 3, 4, 9],
    "in_set": True,
    "in_heartbeats": True,
}


def _text(description: str, **more: Any) -> Json:
    return {"type": "string", "description": description, **more}


def _number(description: str, kind: str = "integer", **more: Any) -> Json:
    return {"type": kind, "description": description, **more}


def _query(name: str, description: str, schema: Json, **more: Any) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema, **more}


def _header(name: str, description: str, schema: Json) -> Json:
    return {"name": name, "in": "header", "description": description, "schema": schema}


STREAM_NAME: Json = {
    "type": "string",
    "pattern": r"^[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,15}$",
    "maxLength": 200,
}

PARAMETERS: Mapping[str, Json] = {
    "stream": {
        "name": "stream",
        "in": "path",
        "required": True,
        "description": "Name of a stream: 1 to 16 tokens of letters, digits, `_` and `-`, joined by dots.",
        "schema": STREAM_NAME,
        "example": "orders.eu",
    },
    "streams": _query(
        "stream",
        "A stream or a pattern, repeatable: `*` stands for one token, a last `>` for the rest.",
        {"type": "array", "items": {"type": "string", "maxLength": 200}, "minItems": 1},
        required=True,
        style="form",
        explode=True,
        example=["orders.>"],
    ),
    "from": _query(
        "from",
        "Where to start: `latest`, `earliest`, `-N` (the last N events of one stream), an RFC 3339 time, a duration "
        "such as `-5m`, or a cursor. Subscriptions start at `latest`, pages at `earliest`.",
        {"type": "string"},
    ),
    "filter": _query(
        "filter",
        "A JSON array of CloudEvents filter terms that must all hold: `exact`, `prefix`, `suffix`, `any`, `not` over "
        "attributes.",
        {"type": "string", "maxLength": 4096},
        example='[{"exact":{"type":"order.placed"}}]',
    ),
    "format": _query(
        "format",
        "`cloudevent`: the whole event; `data`: its payload alone. Event streams only.",
        {"type": "string", "enum": ["cloudevent", "data"], "default": "cloudevent"},
    ),
    "named": _query(
        "named",
        "`true`: the SSE event name is the CloudEvents type. Event streams only.",
        {"type": "boolean", "default": False},
    ),
    "stamps": _query(
        "stamps",
        "`true`: adds position and hop times to each event. Event streams only.",
        {"type": "boolean", "default": False},
    ),
    "compression": _query(
        "compression",
        "`off`: no content coding, whatever `Accept-Encoding` says. Event streams only.",
        {"type": "string", "enum": ["auto", "off"], "default": "auto"},
    ),
    "lastEventIdQuery": _query(
        "last_event_id", "`Last-Event-ID` for clients that cannot set headers. Event streams only.", {"type": "string"}
    ),
    "lastEventId": _header(
        "Last-Event-ID",
        "The cursor to resume from; wins over `from`. Browsers send it by themselves. Event streams only.",
        {"type": "string", "maxLength": 1024},
    ),
    "limit": _query(
        "limit",
        "Most items in one page. Pages only.",
        {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
    ),
    "idempotencyKey": _header(
        "Idempotency-Key",
        "A quoted string. Events without an id get one made from it, so that repeating the request adds nothing.",
        {"type": "string", "examples": ['"order-42"']},
    ),
    "key": _header(
        "Cdrs-Key", "Ordering key of events that bring none: events of one key keep their order.", {"type": "string"}
    ),
    "receipts": _query(
        "receipts",
        "`errors`: NDJSON answers carry problems and the summary only.",
        {"type": "string", "enum": ["all", "errors"], "default": "all"},
    ),
}

SCHEMAS: Mapping[str, Json] = {
    "CloudEvent": {
        **record(
            {
                "specversion": {"const": "1.0"},
                "id": _text("Unique for the source.", minLength=1, maxLength=128),
                "source": _text("Who says it: a URI reference.", minLength=1),
                "type": _text("What happened.", minLength=1),
                "subject": _text("What it is about."),
                "time": _text("When it happened, as the producer says.", format="date-time"),
                "datacontenttype": _text("Media type of the data."),
                "partitionkey": _text("Ordering key."),
                "cdrsstream": _text("The stream. Names it in a request to many streams; always set on what comes out."),
                "data": {"description": "The payload: any JSON value, kept byte for byte."},
                "data_base64": _text("A binary payload instead of data."),
            },
            optional=(
                "subject",
                "time",
                "datacontenttype",
                "partitionkey",
                "cdrsstream",
                "data",
                "data_base64",
            ),
        ),
        "description": "A CloudEvents 1.0 event in JSON format; more attributes are extensions.",
        "additionalProperties": True,
        "examples": [EXAMPLE_EVENT],
    },
    "Receipt": record(
        {
            "id": _text("The event's id."),
            "stream": _text("The stream it is in."),
            "cursor": _text("Subscribing from here gives everything behind this event."),
            "epoch": _text("The incarnation of the log."),
            "partition": _number("Where it stands", minimum=0),
            "offset": _text("Its offset in the partition; a string, because JavaScript rounds large numbers."),
            "duplicate": {"type": "boolean", "description": "It was stored before; the receipt is that one's."},
            "dedupe": {
                "type": "string",
                "enum": ["window"],
                "description": "Only where the store was away: copies were looked for among the last events alone.",
            },
        },
        optional=("dedupe",),
        description="The event is stored as durably as the log promises.",
        examples=[EXAMPLE_RECEIPT],
    ),
    "Refusal": record(
        {
            "index": _number("Its place in the batch, from 0."),
            "status": _number("HTTP status of this event alone."),
            "problem": ref("schemas", "Problem"),
        },
        description="What a batch answers for an event that was not stored.",
    ),
    "Problem": record(
        {
            "type": _text("`/problems/<name>`: a page that explains it.", format="uri-reference"),
            "title": _text("What kind of problem it is."),
            "status": _number("The HTTP status."),
            "detail": _text("What is wrong with this request."),
            "instance": _text("The address that was asked.", format="uri-reference"),
        },
        optional=("detail", "instance"),
        description="RFC 9457 problem details; some types add members of their own.",
        additionalProperties=True,
    ),
    "Gap": record(
        {
            "reason": {
                "enum": ["retention", "epoch", "damage", "cursor-invalid", "cursor-future", "not-in-cursor"],
                "description": "Why something cannot be delivered.",
            },
            "partition": _number("The partition it is in; null: not in one.") | {"type": ["integer", "null"]},
            "from": {"type": ["string", "null"], "description": "First offset that is missing."},
            "to": {"type": ["string", "null"], "description": "First offset that is there again."},
            "lost": {"type": ["integer", "null"], "description": "How many events; null: nobody knows."},
            "resumes_at": _text("The cursor at which reading goes on."),
        },
        description="Something that was asked for and is not delivered.",
    ),
    "Page": record(
        {
            "events": {
                "type": "array",
                "items": record({"cursor": _text("Resumes behind it."), "event": ref("schemas", "CloudEvent")}),
            },
            "next": _text("The cursor for the next page, or for a subscription that goes on from here."),
            "at_end": {"type": "boolean", "description": "There was nothing more when the request came in."},
            "gap": {"oneOf": [ref("schemas", "Gap"), {"type": "null"}], "description": "The first of the gaps."},
            "gaps": {
                "type": "array",
                "items": ref("schemas", "Gap"),
                "description": "What this page should have had and nobody has any more.",
            },
        },
        examples=[
            {
                "events": [{"cursor": EXAMPLE_CURSOR, "event": EXAMPLE_EVENT}],
                "next": EXAMPLE_CURSOR,
                "at_end": True,
                "gap": None,
                "gaps": [],
            }
        ],
    ),
    "Stream": record(
        {
            "name": STREAM_NAME,
            "spread": _number("Over how many partitions it is spread.", minimum=1),
            "partitions": {"type": "array", "items": {"type": "integer"}, "description": "Those it is in."},
            "events": _number("How many events are kept.", minimum=0),
            "created": _text("When it was born.", format="date-time"),
            "last": {
                "oneOf": [
                    record(
                        {
                            "cursor": _text("Behind its last event."),
                            "append_time": _text("When that was stored.", format="date-time"),
                        }
                    ),
                    {"type": "null"},
                ]
            },
        },
        examples=[EXAMPLE_STREAM],
    ),
    "StreamList": record(
        {
            "streams": {"type": "array", "items": ref("schemas", "Stream")},
            "next": {"type": ["string", "null"], "description": "The `after` of the next page; null at the end."},
        },
        examples=[{"streams": [EXAMPLE_STREAM], "next": None}],
    ),
    "StreamSettings": {
        "type": "object",
        "properties": {"spread": _number("Partitions to spread over; constant once it exists.", minimum=1)},
        "additionalProperties": False,
        "examples": [{"spread": 4}],
    },
    "Node": record(
        {
            "id": _text("Name of the process."),
            "incarnation": _text("Drawn anew with each start."),
            "role": _text("node, gateway, the name of a service, or starting: a node that waits for its servers."),
            "url": _text("Where other processes reach it."),
            "version": _text("What it runs."),
            "zone": _text("Failure zone."),
            "capacity": _number("Routing weight.", "number"),
            **{
                name: {"type": [kind, "null"], "description": text}
                for name, kind, text in (
                    ("seq", "integer", "Number of its last heartbeat; null before the first."),
                    ("cpu", "number", "Share of one core it uses."),
                    ("memory_bytes", "integer", "Resident memory."),
                    ("in_flight", "integer", "Work it has not finished."),
                    ("ewma_ms", "number", "Smoothed time to settle a handoff."),
                    ("lag_records", "integer", "Records it is behind the log."),
                    ("connections", "integer", "Open feeds or event streams."),
                    ("partitions", "integer", "Partitions it follows."),
                )
            },
            "state": {"enum": ["live", "suspect", "dead", "draining"], "description": "As this gateway judges it."},
            "age_ms": _number("Since it was last heard."),
            "since": {"type": "string", "format": "date-time", "description": "When this gateway found it so."},
            "took_ms": _number(
                "How long that took. suspect, dead: since it was last heard; live or draining after that: how long it "
                "was away; else 0."
            ),
            "preferred": {
                "type": "array",
                "items": {"type": "integer"},
                "description": "Partitions for which it stands first in the ranking.",
            },
            "in_set": {"type": "boolean", "description": "It is in the registry's set."},
            "in_heartbeats": {"type": "boolean", "description": "A fresh heartbeat of it is in the map."},
        },
        examples=[EXAMPLE_NODE],
    ),
    "NodeList": record(
        {
            "as_of": {"type": ["string", "null"], "format": "date-time", "description": "Last read with success."},
            "registry": {"enum": ["ok", "stale"], "description": "stale: it cannot be read, the last picture holds."},
            "nodes": {"type": "array", "items": ref("schemas", "Node")},
        },
        examples=[{"as_of": "2026-11-20T10:00:00.123Z", "registry": "ok", "nodes": [EXAMPLE_NODE]}],
    ),
    "Health": record(
        {
            "status": {"enum": ["ok", "degraded", "unavailable"]},
            "draining": {"type": "boolean"},
            "checks": {
                "type": "object",
                "description": "log, registry, nodes and feed; store and whatever else is missing.",
                "additionalProperties": record(
                    {
                        "ok": {"type": "boolean"},
                        "detail": _text("What was found."),
                        "since": _text("When a probe first found it so.", format="date-time"),
                    }
                ),
            },
        },
        optional=("draining", "checks"),
        examples=[{"status": "ok"}],
    ),
    "Status": record({"status": {"type": "string"}}, examples=[{"status": "ok"}]),
}
