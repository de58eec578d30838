"""``/openapi.json``: the HTTP interface as an OpenAPI 3.1 document, written by hand; a test holds it to the routes."""

from __future__ import annotations

from functools import lru_cache

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.openapi_parts import Json
from gateway.openapi_paths import paths
from gateway.openapi_schemas import PARAMETERS, SCHEMAS
from shared.version import VERSION

TAGS = (
    ("produce", "Put events in."),
    ("read", "Get events out: live as server-sent events, or as pages of history."),
    ("streams", "Named, append-only sequences of events."),
    ("operate", "Who is alive, and how it is doing."),
    ("pages", "For people."),
)

INTRODUCTION = """\
Events go in over HTTP and come out over server-sent events, in order, once, and without a silent hole.

Put one in:

    curl --json '{"order": 42}' http://127.0.0.1:8080/v1/streams/orders.eu/events

Watch them come out:

    curl -N 'http://127.0.0.1:8080/v1/streams/orders.eu/events?from=earliest'

In a page:

    new EventSource("/v1/streams/orders.eu/events").onmessage = (e) => console.log(JSON.parse(e.data))

Errors are problem documents (RFC 9457); the `type` of each is the address of a page that explains it.
"""


def document() -> Json:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cdrs",
            "version": VERSION,
            "summary": "Events in over HTTP, out to browsers over server-sent events.",
            "description": INTRODUCTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS],
        "paths": paths(),
        "components": {"schemas": dict(SCHEMAS), "parameters": dict(PARAMETERS)},
    }


@lru_cache(maxsize=1)
def _body() -> bytes:
    return orjson.dumps(document(), option=orjson.OPT_INDENT_2)


async def openapi(_request: Request) -> Response:
    """``GET /openapi.json``."""
    return Response(_body(), media_type="application/json", headers={"cache-control": "no-cache"})


routes = [Route("/openapi.json", openapi, methods=["GET"])]
