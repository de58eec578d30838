"""`cdrs streams`: what streams there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from services.cli.client import DEFAULT_URL, JsonOption, UrlOption, base_url, get_json, open_session
from services.cli.output import data, printable, run, write_json

PAGE = 1000


def streams(
    patterns: Annotated[list[str] | None, typer.Argument(help="Only these; * is one token, > the rest.")] = None,
    *,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """List streams with their counts, in order of their names."""
    run(_streams(base_url(url), patterns or [], limit=limit, json=json))


async def _streams(url: str, patterns: list[str], *, limit: int | None, json: bool) -> int:
    table = Table(box=None, pad_edge=False)
    table.add_column("stream")
    for name in ("events", "spread", "last event"):
        table.add_column(name, justify="right")
    left = limit
    after = ""
    async with open_session() as session:
        while left is None or left > 0:
            params = [("stream", pattern) for pattern in patterns]
            params += [("after", after), ("limit", str(PAGE if left is None else min(PAGE, left)))]
            page = await get_json(session, f"{url}/v1/streams", params)
            for stream in page["streams"]:
                if json:
                    write_json(stream)
                else:
                    _add(table, stream)
            left = None if left is None else left - len(page["streams"])
            after = page["next"]
            if after is None:
                break
    if not json:
        data.print(table)
    return 0


def _add(table: Table, stream: dict[str, Any]) -> None:
    last = stream["last"]["append_time"] if stream["last"] else ""
    table.add_row(printable(stream["name"]), f"{stream['events']:,}", str(stream["spread"]), last)
