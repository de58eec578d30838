"""The paths of `/openapi.json`: every operation with its parameters, bodies, answers and problems."""

from __future__ import annotations

import orjson

from gateway.openapi_parts import Json, answer, content, json_content, operation, ref
from gateway.openapi_schemas import EXAMPLE_CURSOR, EXAMPLE_EVENT, EXAMPLE_RECEIPT
from shared import errors as e

SUBSCRIBE_TEXT = """\
With `Accept: text/event-stream`, `*/*` or none: an event stream. Events arrive on `onmessage`; each carries as its
`id` the cursor to resume from, which browsers send back as `Last-Event-ID` by themselves. Control events have names
of their own: `cdrs.cursor` (moves the last id), `cdrs.caught-up` (history ends, live begins), `cdrs.gap` (something
cannot be delivered, and why), `cdrs.bye` (the server ends the stream, and why). A stream that does not exist yet is no
error: the subscription waits for it.

With `Accept: application/json`: a page of history. `next` continues it, or starts a subscription behind it.
"""

PRODUCE_ERRORS = (
    e.MalformedJson,
    e.TooDeep,
    e.DuplicateKey,
    e.TooManyFields,
    e.FieldTooLong,
    e.InvalidEvent,
    e.InvalidAttribute,
    e.InvalidId,
    e.InvalidType,
    e.InvalidSource,
    e.InvalidTime,
    e.ReservedField,
    e.EmptyBatch,
    e.InvalidStream,
    e.InvalidKey,
    e.NotNormalized,
    e.InvalidIdempotencyKey,
    e.InvalidParameter,
    e.RequestTimeout,
    e.PayloadTooLarge,
    e.BatchTooLarge,
    e.UnsupportedMediaType,
    e.UnsupportedEncoding,
    e.IdempotencyMismatch,
    e.Unavailable,
    e.Overloaded,
    e.DiskFull,
    e.LogAway,
    e.OutcomeUnknown,
)
READ_ERRORS = (
    e.InvalidParameter,
    e.InvalidStream,
    e.InvalidPattern,
    e.TooManyStreams,
    e.InvalidFrom,
    e.InvalidFilter,
    e.PatternTooComplex,
    e.InvalidCursor,
    e.NotAcceptable,
    e.Gone,
    e.Unavailable,
)


def _parameters(*names: str) -> list[Json]:
    return [ref("parameters", name) for name in names]


STREAM_EXAMPLE = (
    f"retry: 1432\n\nevent: cdrs.cursor\nid: {EXAMPLE_CURSOR}\ndata:\n\n"
    f"id: {EXAMPLE_CURSOR}\ndata: {orjson.dumps(EXAMPLE_EVENT).decode()}\n\n"
)


def _produce(operation_id: str, summary: str, description: str, *, one_stream: bool) -> Json:
    event, batch = ref("schemas", "CloudEvent"), {"type": "array", "items": ref("schemas", "CloudEvent")}
    body = {
        **content("application/cloudevents+json", event, example=EXAMPLE_EVENT),
        **content("application/cloudevents-batch+json", batch),
        **content("application/x-ndjson", {"type": "string", "description": "One CloudEvent or payload a line."}),
    }
    if one_stream:
        payload: Json = {"description": "Any JSON value: the payload of one event."}
        body = {**content("application/json", payload, example={"order": 42}), **body}
    receipt = {"oneOf": [ref("schemas", "Receipt"), {"type": "array", "items": ref("schemas", "Receipt")}]}
    per_event = {"oneOf": [ref("schemas", "Receipt"), ref("schemas", "Refusal")]}
    ndjson = {"type": "string", "description": "NDJSON: a receipt or a problem for each line, last a summary."}
    location = {"Location": {"schema": {"type": "string"}, "description": "The event's address; one event only."}}
    answers = {
        "200": answer(
            "All of it was stored before (duplicates); or NDJSON, answered while it is read.",
            {**content("application/json", receipt), **content("application/x-ndjson", ndjson)},
        ),
        "201": answer("Stored.", content("application/json", receipt, example=EXAMPLE_RECEIPT), location),
        "207": answer(
            "A batch of which some is new and some is not, or was refused.",
            content("application/json", {"type": "array", "items": per_event}),
        ),
    }
    names = (*(("stream",) if one_stream else ()), "idempotencyKey", "key", "receipts")
    return operation(
        operation_id,
        "produce",
        summary,
        answers,
        description=description,
        parameters=_parameters(*names),
        body={"required": True, "content": body},
        errors=PRODUCE_ERRORS,
    )


def _read(operation_id: str, summary: str, first: str) -> Json:
    names = (
        first,
        "from",
        "filter",
        "limit",
        "format",
        "named",
        "stamps",
        "compression",
        "lastEventId",
        "lastEventIdQuery",
    )
    stream = {"type": "string", "description": "Server-sent events (WHATWG HTML, section 9.2)."}
    answers = {
        "200": answer(
            "An event stream that does not end by itself, or a page.",
            {**content("text/event-stream", stream, example=STREAM_EXAMPLE), **json_content("Page")},
        )
    }
    return operation(
        operation_id,
        "read",
        summary,
        answers,
        description=SUBSCRIBE_TEXT,
        parameters=_parameters(*names),
        errors=READ_ERRORS,
    )


def _event_paths() -> Json:
    source: Json = {
        "name": "source",
        "in": "query",
        "schema": {"type": "string"},
        "description": "The event's source, where several used the id.",
    }
    event_id: Json = {
        "name": "id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "maxLength": 128},
        "description": "The event's id, percent-encoded.",
        "example": EXAMPLE_EVENT["id"],
    }
    headers = {
        "ETag": {"schema": {"type": "string"}, "description": "Its position; an event never changes."},
        "Cdrs-Cursor": {"schema": {"type": "string"}, "description": "Resumes behind it."},
    }
    event = content("application/cloudevents+json", ref("schemas", "CloudEvent"))
    found = answer("The event, as stored.", event, headers)
    return {
        "/v1/streams/{stream}/events": {
            "post": _produce(
                "publish",
                "Put events into a stream",
                "A bare JSON payload, a CloudEvent (structured, or binary with `ce-*` headers and any content type), a "
                "batch, or NDJSON. The answer comes when it is stored.",
                one_stream=True,
            ),
            "get": _read("subscribe", "Subscribe to a stream, or read its history", "stream"),
        },
        "/v1/events": {
            "post": _produce(
                "publishMany",
                "Put events into many streams",
                "CloudEvents that name their stream in the extension attribute `cdrsstream`: one, a batch, or NDJSON.",
                one_stream=False,
            ),
            "get": _read("subscribeMany", "Subscribe to several streams, or read their history", "streams"),
        },
        "/v1/streams/{stream}/events/{id}": {
            "get": operation(
                "getEvent",
                "read",
                "Get one event",
                {"200": found, "304": answer("Unchanged (`If-None-Match`).")},
                parameters=[*_parameters("stream"), event_id, source],
                errors=(
                    e.InvalidStream,
                    e.InvalidId,
                    e.InvalidSource,
                    e.InvalidParameter,
                    e.UnknownEvent,
                    e.AmbiguousEvent,
                    e.Unavailable,
                ),
            )
        },
    }


def _stream_paths() -> Json:
    after: Json = {
        "name": "after",
        "in": "query",
        "schema": {"type": "string", "maxLength": 200},
        "description": "Only streams behind this name.",
    }
    pattern: Json = {
        "name": "stream",
        "in": "query",
        "schema": {"type": "array", "items": {"type": "string"}},
        "description": "Only streams that match one of these patterns.",
    }
    body = {"required": True, "content": json_content("StreamSettings")}
    return {
        "/v1/streams": {
            "get": operation(
                "listStreams",
                "streams",
                "List streams",
                {"200": answer("In order of name.", json_content("StreamList"))},
                parameters=[pattern, after, *_parameters("limit")],
                errors=(e.InvalidParameter, e.InvalidPattern, e.Unavailable),
            )
        },
        "/v1/streams/{stream}": {
            "get": operation(
                "getStream",
                "streams",
                "Get a stream",
                {"200": answer("The stream.", json_content("Stream"))},
                parameters=_parameters("stream"),
                errors=(e.InvalidStream, e.InvalidParameter, e.UnknownStream, e.Unavailable),
            ),
            "put": operation(
                "createStream",
                "streams",
                "Create a stream with settings",
                {
                    "200": answer("It exists like this.", json_content("Stream")),
                    "201": answer("Created.", json_content("Stream")),
                },
                description="Only needed for settings: a stream is born by its first event, with spread 1.",
                parameters=_parameters("stream"),
                body=body,
                errors=(
                    e.InvalidStream,
                    e.InvalidParameter,
                    e.MalformedJson,
                    e.RequestTimeout,
                    e.StreamConflict,
                    e.PayloadTooLarge,
                    e.UnsupportedMediaType,
                    e.Unavailable,
                ),
            ),
        },
    }


def _node_paths() -> Json:
    stream = {
        "type": "string",
        "description": "`cdrs.nodes`: the whole picture; then `cdrs.node` for each change, with `change` being join, "
        "load, suspect, dead, drain or leave. No ids: a reconnect starts with the picture.",
    }
    events = content("text/event-stream", stream)
    node_id: Json = {
        "name": "id",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "Name of a process.",
    }
    return {
        "/v1/nodes": {
            "get": operation(
                "listNodes",
                "operate",
                "List the processes in the registry, or watch them",
                {"200": answer("All processes.", {**json_content("NodeList"), **events})},
                errors=(e.InvalidParameter, e.NotAcceptable),
            )
        },
        "/v1/nodes/{id}": {
            "get": operation(
                "getNode",
                "operate",
                "Get one process, or watch it",
                {"200": answer("Its most alive incarnation.", {**json_content("Node"), **events})},
                parameters=[node_id],
                errors=(e.InvalidParameter, e.UnknownNode, e.NotAcceptable),
            )
        },
    }


def _probe_paths() -> Json:
    verbose: Json = {
        "name": "verbose",
        "in": "query",
        "allowEmptyValue": True,
        "schema": {"type": "string"},
        "description": "With each check.",
    }
    status, health = json_content("Status"), json_content("Health")
    ready = {"200": answer("Send requests here.", health), "503": answer("Send none.", health)}
    started = {"200": answer("Up.", status), "503": answer("Not yet.", status)}
    text = {"type": "string"}
    metrics = {**content("text/plain", text), **content("application/openmetrics-text", text)}
    return {
        "/livez": {
            "get": operation("live", "operate", "Is the process alive?", {"200": answer("It is.", status)}),
        },
        "/readyz": {
            "get": operation("ready", "operate", "Should it get requests?", ready, parameters=[verbose]),
        },
        "/startupz": {"get": operation("startup", "operate", "Has it come up?", started)},
        "/metrics": {
            "get": operation("metrics", "operate", "Prometheus metrics", {"200": answer("All metrics.", metrics)}),
        },
    }


def _people_paths() -> Json:
    page = content("text/html", {"type": "string"})
    name: Json = {
        "name": "type",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "Its last part.",
    }
    document = content("application/json", {"type": "object"})
    return {
        "/openapi.json": {
            "get": operation("openapi", "pages", "This document", {"200": answer("OpenAPI 3.1.", document)}),
        },
        "/docs": {"get": operation("docs", "pages", "This document, to read", {"200": answer("A page.", page)})},
        "/problems": {
            "get": operation(
                "problems",
                "pages",
                "All problem types",
                {"200": answer("A page, or JSON.", {**page, **document})},
            )
        },
        "/problems/{type}": {
            "get": operation(
                "problem",
                "pages",
                "What a problem type means",
                {"200": answer("A page, or JSON.", {**page, **document})},
                parameters=[name],
                errors=(e.NotFound,),
            )
        },
        "/console/": {
            "get": operation("console", "pages", "A live look at the system", {"200": answer("A page.", page)}),
        },
    }


def paths() -> Json:
    """Every path the gateway answers."""
    return {**_event_paths(), **_stream_paths(), **_node_paths(), **_probe_paths(), **_people_paths()}
