"""``/docs``: the OpenAPI document as a page to read. No script, nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import static_pages
from gateway.openapi import document
from gateway.openapi_parts import PROBLEM_JSON

Json = Mapping[str, Any]

_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[([^\]]+)\]\((/[^)\s]*)\)")

_HEAD = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>cdrs API</title><link rel="icon" href="data:,"><link rel="stylesheet" href="/console/console.css"></head>
<body>
"""


def _inline(text: str) -> str:
    text = _LINK.sub(r'<a href="\2">\1</a>', escape(text, quote=False))
    return _CODE.sub(r"<code>\1</code>", text)


def _prose(text: str) -> str:
    """The little Markdown that the document uses: paragraphs, indented code, `code` and links."""
    blocks: list[str] = []
    for block in text.strip("\n").split("\n\n"):
        if block.startswith("    "):
            code = "\n".join(line[4:] for line in block.split("\n"))
            blocks.append(f"<pre>{escape(code, quote=False)}</pre>")
        else:
            blocks.append(f"<p>{_inline(block)}</p>")
    return "\n".join(blocks)


def _resolve(part: Json, whole: Json) -> Json:
    """Follow a reference into the components."""
    if "$ref" not in part:
        return part
    found: Any = whole
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return _resolve(found, whole)


def _parameter(parameter: Json) -> str:
    place = "" if parameter["in"] == "query" else f" ({parameter['in']})"
    need = ", required" if parameter.get("required") else ""
    schema = parameter["schema"]
    choice = f" One of {', '.join(schema['enum'])}." if "enum" in schema else ""
    default = f" Default {json.dumps(schema['default'])}." if "default" in schema else ""
    return (
        f"<dt><code>{escape(parameter['name'])}</code>{place}{need}</dt>"
        f"<dd>{_inline(parameter['description'] + choice + default)}</dd>"
    )


def _examples(content: Json, whole: Json) -> Iterator[str]:
    for media_type, media in content.items():
        schema = _resolve(media["schema"], whole)
        example = media.get("example", next(iter(schema.get("examples", ())), None))
        if example is None:
            continue
        text = example if isinstance(example, str) else json.dumps(example, indent=2)
        yield (
            f"<details><summary>Example, <code>{media_type}</code></summary>"
            f"<pre>{escape(text.rstrip(), quote=False)}</pre></details>"
        )


def _content(content: Json, whole: Json) -> str:
    kinds = ", ".join(f"<code>{media_type}</code>" for media_type in content)
    return kinds + "".join(_examples(content, whole))


def _operation(path: str, method: str, operation: Json, whole: Json) -> Iterator[str]:
    yield f'<div class="operation" id="{operation["operationId"]}">'
    yield f'<h3><span class="method">{method.upper()}</span> <code>{escape(path)}</code></h3>'
    yield f"<p>{_inline(operation['summary'])}.</p>"
    if "description" in operation:
        yield _prose(operation["description"])
    if parameters := [_resolve(parameter, whole) for parameter in operation.get("parameters", ())]:
        yield f"<dl>{''.join(map(_parameter, parameters))}</dl>"
    if "requestBody" in operation:
        yield f"<p>Body: {_content(operation['requestBody']['content'], whole)}</p>"
    yield "<dl>"
    for status, answer in operation["responses"].items():
        content = {kind: media for kind, media in answer.get("content", {}).items() if kind != PROBLEM_JSON}
        shown = _content(content, whole)
        yield f"<dt><code>{status}</code></dt><dd>{_inline(answer['description'])} {shown}</dd>"
    yield "</dl></div>"


@lru_cache(maxsize=1)
def render() -> str:
    """The page. Built once: nothing in it changes while the process runs."""
    whole = document()
    parts = [_HEAD]
    parts.append(f"<header><h1>cdrs API <small>{escape(whole['info']['version'])}</small></h1>")
    parts.append('<nav><a href="/console/">Console</a> <a href="/openapi.json">OpenAPI</a> ')
    parts.append('<a href="/problems">Problems</a></nav></header><main>')
    parts.append(f"<section>{_prose(whole['info']['description'])}</section>")
    for tag in whole["tags"]:
        parts.append(
            f'<section><h2 id="{tag["name"]}">{tag["name"].capitalize()}</h2><p>{_inline(tag["description"])}</p>'
        )
        for path, operations in whole["paths"].items():
            for method, operation in operations.items():
                if tag["name"] in operation["tags"]:
                    parts.extend(_operation(path, method, operation, whole))
        parts.append("</section>")
    parts.append("</main></body></html>\n")
    return "\n".join(parts)


async def docs(_request: Request) -> Response:
    """``GET /docs``."""
    return static_pages.page(render(), scripts=False)


routes = [Route("/docs", docs, methods=["GET"])]
