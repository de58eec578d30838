"""``/console/``: one page to look at the system, publish an event and watch a stream. Readable without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gateway import static_pages
from gateway.nodes import nodes_document
from shared.version import VERSION

if TYPE_CHECKING:
    from gateway.context import GatewayContext

_PAGE = Template(static_pages.read("index.html"))


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _row(node: Mapping[str, Any]) -> str:
    cpu, memory = node["cpu"], node["memory_bytes"]
    numbers = (
        f"{node['age_ms'] / 1000:.1f} s ago",
        _figure(None if cpu is None else cpu * 100, "{:.0f} %"),
        _figure(None if memory is None else memory / 1048576, "{:.0f} MiB"),
        _figure(node["in_flight"], "{}"),
        _figure(node["ewma_ms"], "{:.1f} ms"),
        _figure(node["lag_records"], "{}"),
        _figure(node["connections"], "{}"),
    )
    preferred: Sequence[int] = node["preferred"]
    return "".join(
        (
            f"<tr><td>{escape(node['id'])}</td><td>{escape(node['role'])}</td>",
            f'<td><span class="pill {node["state"]}">{node["state"]}</span></td>',
            *(f'<td class="number">{number}</td>' for number in numbers),
            f"<td>{' '.join(map(str, preferred)) or '–'}</td><td>{escape(node['version'])}</td></tr>",
        )
    )


async def console(request: Request) -> Response:
    """``GET /console/``."""
    context: GatewayContext = request.app.state.gateway
    picture = nodes_document(context)
    nodes = sorted(picture["nodes"], key=lambda node: (node["role"], node["id"]))
    html = _PAGE.substitute(
        version=escape(VERSION),
        registry=picture["registry"],
        as_of=picture["as_of"] or "now",
        nodes="\n".join(map(_row, nodes)),
        origin=escape(str(request.base_url).rstrip("/")),
    )
    return static_pages.page(html, scripts=True)


async def _with_slash(_request: Request) -> Response:
    return RedirectResponse("/console/", status_code=308)


routes = [
    Route("/console/", console, methods=["GET"]),
    Route("/console", _with_slash, methods=["GET"], include_in_schema=False),
    Route("/console/{file}", static_pages.asset, methods=["GET"], include_in_schema=False),
]
