"""The client side of the HTTP interface, as far as every command needs it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, cast

import aiohttp
import orjson
import typer

from shared.errors import BY_PROBLEM, CdrsError, InternalError, StartError, Unavailable
from shared.version import VERSION

DEFAULT_URL = "http://127.0.0.1:8080"

UrlOption = Annotated[
    str, typer.Option("--url", envvar="CDRS_URL", help="Where the gateway is.", metavar="URL", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout, one document a line.")]


def base_url(url: str) -> str:
    """A usable base URL. Raises `StartError`."""
    if "://" not in url:
        url = f"http://{url}"
    if not url.startswith(("http://", "https://")):
        raise StartError(f"the gateway's URL must start with http:// or https://, not {url!r}; give --url or CDRS_URL")
    return url.rstrip("/")


@asynccontextmanager
async def open_session() -> AsyncGenerator[aiohttp.ClientSession]:
    """A session without a limit on the whole request: streams are open for ever; silence is judged by the caller."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    headers = {"User-Agent": f"cdrs/{VERSION}"}
    async with aiohttp.ClientSession(timeout=timeout, headers=headers, read_bufsize=1 << 18) as session:
        yield session


async def get_json(session: aiohttp.ClientSession, url: str, params: Sequence[tuple[str, str]] = ()) -> Any:
    """GET a JSON document. Raises the problem's error class, or `Unavailable` where nobody answers."""
    try:
        timeout = aiohttp.ClientTimeout(total=30)
        headers = {"Accept": "application/json"}
        async with session.get(url, params=list(params), headers=headers, timeout=timeout) as response:
            body = await response.read()
            if response.status >= 400:
                raise problem_of(response.status, body)
            return orjson.loads(body)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise unreachable(url, error) from error


def unreachable(url: str, error: BaseException) -> Unavailable:
    """What to say when nobody answers."""
    os_error = getattr(error, "os_error", None)
    reason = (os_error and os_error.strerror) or str(error) or type(error).__name__
    return Unavailable(f"no answer from {url}: {reason}. Is `cdrs up` running there? --url or CDRS_URL choose another")


def problem_of(status: int, body: bytes) -> CdrsError:
    """The error that a problem document (RFC 9457) stands for."""
    members: dict[str, Any] = {}
    try:
        parsed: Any = orjson.loads(body)
        members = cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else {}
    except orjson.JSONDecodeError:
        pass
    name = str(members.get("type", "")).rpartition("/")[2]
    detail = str(members.get("detail") or members.get("title") or f"the gateway answered {status}")
    return BY_PROBLEM.get(name, InternalError)(detail)
