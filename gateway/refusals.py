"""The answer to what is no request that an application could be given."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

import orjson

from gateway.problems import problem_document, problem_headers
from shared.errors import CdrsError, MethodNotAllowed

ALLOW = "DELETE, GET, HEAD, OPTIONS, POST, PUT"


def refusal(error: CdrsError, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
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
