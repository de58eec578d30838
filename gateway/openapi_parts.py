"""What the parts of `/openapi.json` are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shared.errors import CdrsError

Json = dict[str, Any]

PROBLEM_JSON = "application/problem+json"


def ref(kind: str, name: str) -> Json:
    """A reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def record(properties: Mapping[str, Json], *, optional: Iterable[str] = (), **more: Any) -> Json:
    """An object schema; every property is required but the optional ones."""
    missing = set(optional)
    required = [name for name in properties if name not in missing]
    return {"type": "object", "properties": dict(properties), "required": required, **more}


def content(media_type: str, schema: Json, **more: Any) -> Json:
    """One entry of a content object."""
    return {media_type: {"schema": schema, **more}}


def json_content(name: str) -> Json:
    """The entry of a JSON body with the schema of this name."""
    return content("application/json", ref("schemas", name))


def answer(description: str, body: Json | None = None, headers: Json | None = None) -> Json:
    """A response object."""
    made: Json = {"description": description}
    if headers:
        made["headers"] = headers
    if body:
        made["content"] = body
    return made


def operation(
    operation_id: str,
    tag: str,
    summary: str,
    answers: Mapping[str, Json],
    *,
    description: str = "",
    parameters: Sequence[Json] = (),
    body: Json | None = None,
    errors: Sequence[type[CdrsError]] = (),
) -> Json:
    """An operation object; the problems of ``errors`` come behind the other answers."""
    made: Json = {"operationId": operation_id, "tags": [tag], "summary": summary}
    if description:
        made["description"] = description
    if parameters:
        made["parameters"] = list(parameters)
    if body is not None:
        made["requestBody"] = body
    made["responses"] = {**answers, **problem_responses(*errors)}
    return made


def problem_responses(*errors: type[CdrsError]) -> Mapping[str, Json]:
    """Response objects for the errors an operation can answer, one for each status."""
    by_status: dict[str, list[type[CdrsError]]] = {}
    for error in errors:
        by_status.setdefault(str(error.status), []).append(error)
    return {
        status: {
            "description": "; ".join(f"[{e.problem}](/problems/{e.problem}): {e.title}" for e in group),
            "content": {PROBLEM_JSON: {"schema": ref("schemas", "Problem"), "example": _example(group[0])}},
        }
        for status, group in sorted(by_status.items())
    }


def _example(error: type[CdrsError]) -> Json:
    return {"type": f"/problems/{error.problem}", "title": error.title, "status": error.status}
