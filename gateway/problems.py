"""Errors as clients see them: RFC 9457 problem documents, and the page behind each problem type.

A document never repeats what a client sent; ``instance`` is the path, and only where it is harmless to repeat.
"""

from __future__ import annotations

import html
import inspect
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Match, Mount, Route

from shared.errors import BY_PROBLEM, CdrsError, InternalError, InvalidRequest, MethodNotAllowed, NotFound

ALLOW = "DELETE, GET, HEAD, OPTIONS, POST, PUT"
"""Of requests that no application is given."""

CONTENT_TYPE = "application/problem+json"

_HARMLESS_PATH = re.compile(r"/[A-Za-z0-9/._~-]{0,255}")
_OWN_MEMBERS = frozenset({"type", "title", "status", "detail", "instance"})


def problem_document(error: CdrsError, *, instance: str | None = None) -> dict[str, Any]:
    """The members of a problem document (RFC 9457, 3)."""
    document: dict[str, Any] = {
        "type": f"/problems/{error.problem or InternalError.problem}",
        "title": error.title or InternalError.title,
        "status": error.status,
    }
    if error.detail:
        document["detail"] = error.detail
    if instance is not None and _HARMLESS_PATH.fullmatch(instance) is not None:
        document["instance"] = instance
    document.update((name, value) for name, value in error.members.items() if name not in _OWN_MEMBERS)
    return document


def problem_headers(error: CdrsError) -> dict[str, str]:
    """The header fields that belong to a problem: ``Retry-After`` where a retry makes sense."""
    headers = {"content-type": CONTENT_TYPE, "cache-control": "no-store"}
    retry_after = error.retry_after
    if retry_after is None and error.status in {429, 503}:
        retry_after = 1.0
    if retry_after is not None:
        headers["retry-after"] = str(max(math.ceil(retry_after), 1))
    return headers


def problem_response(error: CdrsError, *, instance: str | None = None) -> Response:
    """The answer to a request that ended in this error."""
    body = orjson.dumps(problem_document(error, instance=instance))
    return Response(body, error.status, headers=problem_headers(error))


# --- handlers for Starlette ---------------------------------------------------------------------------


async def _cdrs_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CdrsError)
    return problem_response(error, instance=request.url.path)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == MethodNotAllowed.status:
        return method_not_allowed(request)
    kind: type[CdrsError] = NotFound if error.status_code == NotFound.status else InvalidRequest
    return problem_response(kind(), instance=request.url.path)


async def unexpected(request: Request, error: Exception) -> Response:
    """The answer to a defect of ours. Whoever calls this logs it; Starlette does by raising the error again."""
    return problem_response(InternalError(), instance=request.url.path)


def method_not_allowed(request: Request) -> Response:
    """405 with the methods of every route of this address: a Starlette router knows those of the first one only."""
    allowed = sorted(_methods_of(request.app.routes, request))
    response = problem_response(
        MethodNotAllowed("this address takes " + ", ".join(allowed), allow=allowed), instance=request.url.path
    )
    response.headers["allow"] = ", ".join(allowed)
    return response


def _methods_of(routes: list[BaseRoute], request: Request) -> set[str]:
    found: set[str] = set()
    for route in routes:
        if isinstance(route, Mount):
            found |= _methods_of(route.routes, request)
        elif isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= set(route.methods or ())
    return found


ExceptionHandler = Callable[[Request, Exception], Awaitable[Response]]

exception_handlers: Mapping[Any, ExceptionHandler] = {
    CdrsError: _cdrs_error,
    HTTPException: _http_exception,
    Exception: unexpected,
}
"""For ``Starlette(exception_handlers=…)``."""


# --- the pages ----------------------------------------------------------------------------------------

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title} · cdrs</title></head>
<body>
<h1>{title}</h1>
<p>{text}</p>
<dl><dt>Type</dt><dd><code>/problems/{problem}</code></dd><dt>Status</dt><dd>{status}</dd>
<dt>Repeating the same request</dt><dd>{retry}</dd></dl>
<p><a href="/problems">All problems</a> · <a href="/docs">API</a></p>
</body>
</html>
"""

_INDEX = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Problems · cdrs</title></head>
<body>
<h1>Problems</h1>
<p>Every error answer is an <code>application/problem+json</code> document (RFC 9457) of one of these types.</p>
<ul>
{items}
</ul>
</body>
</html>
"""


def describe(kind: type[CdrsError]) -> dict[str, Any]:
    """A problem type, as its JSON page says it."""
    text = " ".join((inspect.getdoc(kind) or "").split()).replace("``", "")
    return {
        "type": f"/problems/{kind.problem}",
        "title": kind.title,
        "status": kind.status,
        "description": text,
        "retry": kind.retry,
    }


def _wants_json(request: Request) -> bool:
    accept = request.headers.get("accept", "")
    return "json" in accept and "text/html" not in accept


async def problem_page(request: Request) -> Response:
    """``GET /problems/{type}``: what a problem type means."""
    kind = BY_PROBLEM.get(request.path_params["type"])
    if kind is None:
        raise NotFound("there is no such problem type")
    said = describe(kind)
    if _wants_json(request):
        return Response(orjson.dumps(said), media_type="application/json")
    retry = "can help" if kind.retry else "cannot help"
    return HTMLResponse(
        _PAGE.format(
            title=html.escape(kind.title),
            text=html.escape(said["description"]),
            problem=kind.problem,
            status=kind.status,
            retry=retry,
        )
    )


async def problem_index(request: Request) -> Response:
    """``GET /problems``: all problem types."""
    kinds = sorted(BY_PROBLEM.values(), key=lambda kind: (kind.status, kind.problem))
    if _wants_json(request):
        return Response(orjson.dumps({"problems": [describe(kind) for kind in kinds]}), media_type="application/json")
    items = "\n".join(
        f'<li>{kind.status} <a href="/problems/{kind.problem}"><code>{kind.problem}</code></a> '
        f"{html.escape(kind.title)}</li>"
        for kind in kinds
    )
    return HTMLResponse(_INDEX.format(items=items))


async def _without_slash(_request: Request) -> Response:
    return RedirectResponse("/problems", status_code=308)


routes: list[Route] = [
    Route("/problems", problem_index),
    Route("/problems/", _without_slash, include_in_schema=False),
    Route("/problems/{type}", problem_page),
]


def raw_problem(error: CdrsError, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A whole HTTP/1.1 answer with a problem document, the last one on its connection."""
    body = orjson.dumps(problem_document(error))
    parts = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n".encode("ascii")]
    headers = problem_headers(error) | {"content-length": str(len(body)), "connection": "close"}
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = ALLOW
    for name, value in default_headers:
        parts += [name, b": ", value, b"\r\n"]
    for text, content in headers.items():
        parts.append(f"{text}: {content}\r\n".encode("ascii"))
    return b"".join([*parts, b"\r\n", body])
