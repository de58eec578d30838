"""`cdrs sub`: follow streams; resumes by itself."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Annotated, Any, cast

import orjson
import typer

from services.cli.client import DEFAULT_URL, JsonOption, UrlOption, base_url, open_session
from services.cli.output import printable, run, talk, write_line
from services.cli.sse_client import Reconnect, ServerEvent, Subscription


def sub(
    patterns: Annotated[list[str], typer.Argument(help="Streams or patterns: * is one token, > the rest.")],
    *,
    start: Annotated[
        str,
        typer.Option("--from", help="latest, earliest, -N, a time, -5m, or a cursor.", metavar="START"),
    ] = "latest",
    filter: Annotated[  # noqa: A002 -- the flag's name
        str | None,
        typer.Option("--filter", help='JSON array, e.g. [{"exact":{"type":"edit"}}].', metavar="JSON"),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="End after so many events.")] = None,
    duration: Annotated[float | None, typer.Option("--duration", min=0, help="End after so many seconds.")] = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Print events as they come. Breaks are bridged: it asks again from the last event it has printed."""
    params = [("stream", pattern) for pattern in patterns] + [("from", start)]
    if filter is not None:
        params.append(("filter", filter))
    run(_sub(base_url(url), params, count=count, duration=duration, json=json))


async def _sub(
    url: str, params: list[tuple[str, str]], *, count: int | None, duration: float | None, json: bool
) -> int:
    left = count
    try:
        async with asyncio.timeout(duration), open_session() as session:
            subscription = Subscription(session, f"{url}/v1/events", params)
            async with aclosing(subscription.events()) as events:
                async for event in events:
                    if isinstance(event, Reconnect):
                        talk.print(f"# {event.reason}; going on in {event.pause:.1f} s")
                        continue
                    if not _show(event, json=json) or left is None:
                        continue
                    left -= 1
                    if left == 0:
                        return 0
    except TimeoutError:
        return 0
    return 0


def _show(event: ServerEvent, *, json: bool) -> bool:
    """Print one event; whether it was one of the streams' own."""
    if event.event.startswith("cdrs."):
        _note(event)
        return False
    if json:
        write_line(event.data.replace(b"\n", b" "))
    else:
        write_line(printable(_one_line(event.data)).encode())
    return True


def _note(event: ServerEvent) -> None:
    if event.event == "cdrs.cursor":
        return
    text = event.data.decode("utf-8", "replace")
    talk.print(printable(f"# {event.event.removeprefix('cdrs.')} {text}".rstrip()))


def _one_line(value: bytes) -> str:
    """Stream, type and payload of a CloudEvent, for people."""
    try:
        event = cast("dict[str, Any]", orjson.loads(value))
        payload = event.get("data", event.get("data_base64"))
        shown = payload if isinstance(payload, str) else orjson.dumps(payload).decode()
        return f"{event['cdrsstream']}  {event['type']}  {shown}"
    except (orjson.JSONDecodeError, KeyError, AttributeError):
        return value.decode("utf-8", "replace")
