"""`cdrs nodes`: the registry, once or live."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated, Any

import aiohttp
import orjson
import typer
from rich.live import Live
from rich.table import Table

from services.cli.client import DEFAULT_URL, JsonOption, UrlOption, base_url, get_json, open_session
from services.cli.output import data, printable, run, talk, write_json, write_line
from services.cli.sse_client import Reconnect, Subscription


def nodes(
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on, and show every change.")] = False,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Who is there: nodes, gateways and services, how they fare and how busy they are."""
    run(_nodes(base_url(url), watch=watch, json=json))


async def _nodes(url: str, *, watch: bool, json: bool) -> int:
    async with open_session() as session:
        if watch:
            await _watch(session, url, json=json)
        picture = await get_json(session, f"{url}/v1/nodes")
        if json:
            write_json(picture)
        else:
            data.print(_table(picture["nodes"], registry=picture["registry"]))
    return 0


async def _watch(session: aiohttp.ClientSession, url: str, *, json: bool) -> None:
    known: dict[str, dict[str, Any]] = {}
    registry = "ok"
    subscription = Subscription(session, f"{url}/v1/nodes")
    with Live(_table([]), console=data, auto_refresh=False, transient=False) as live:
        async with aclosing(subscription.events()) as events:
            async for event in events:
                if isinstance(event, Reconnect):
                    talk.print(printable(f"# {event.reason}; going on in {event.pause:.1f} s"))
                    continue
                if json:
                    write_line(event.data.replace(b"\n", b" "))
                    continue
                message: dict[str, Any] = orjson.loads(event.data) if event.data else {}
                if event.event == "cdrs.nodes":
                    known = {_key(node): node for node in message["nodes"]}
                    registry = message["registry"]
                elif event.event == "cdrs.node":
                    _apply(known, message["change"], message["node"])
                    registry = message["registry"]
                live.update(_table(list(known.values()), registry=registry), refresh=True)


def _apply(known: dict[str, dict[str, Any]], change: str, node: dict[str, Any]) -> None:
    if change == "leave":
        known.pop(_key(node), None)
    else:
        known[_key(node)] = node


def _key(node: dict[str, Any]) -> str:
    return f"{node['id']}/{node['incarnation']}"


def _figure(value: int | None) -> str:
    return "" if value is None else str(value)  # none before its first heartbeat


def _table(nodes: list[dict[str, Any]], *, registry: str = "ok") -> Table:
    title = None if registry == "ok" else "the registry cannot be read; this is the last known picture"
    table = Table(box=None, pad_edge=False, title=title)
    for name in ("id", "role", "state", "age", "cpu", "memory", "in flight", "ms", "lag", "connections", "url"):
        table.add_column(name, justify="left" if name in {"id", "role", "state", "url"} else "right")
    for node in sorted(nodes, key=lambda node: (node["role"], node["id"], node["incarnation"])):
        table.add_row(
            printable(node["id"]),
            printable(node["role"]),
            node["state"],
            f"{node['age_ms']} ms",
            f"{node.get('cpu') or 0:.0%}",
            f"{(node.get('memory_bytes') or 0) / 2**20:.0f} MiB",
            _figure(node.get("in_flight")),
            f"{node.get('ewma_ms') or 0:.1f}",
            _figure(node.get("lag_records")),
            _figure(node.get("connections")),
            printable(node["url"]),
        )
    return table
