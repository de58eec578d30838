"""Where the commands write: data on stdout, talk on stderr. Honours NO_COLOR and knows pipes from terminals."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

import aiohttp
import orjson
import typer
import uvloop
from rich.console import Console

from services.process import EXIT_INTERRUPTED

talk = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
data = Console(soft_wrap=True, highlight=False, markup=False)


def write_json(value: Any) -> None:
    """One line of JSON on stdout."""
    write_line(orjson.dumps(value))


def write_line(line: bytes) -> None:
    """One line of bytes on stdout, at once where somebody watches or waits for it."""
    out = sys.stdout.buffer
    out.write(line + b"\n")
    out.flush()


def printable(text: str) -> str:
    """Text from elsewhere, fit for a terminal: control characters are shown, not obeyed."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def run(command: Coroutine[Any, Any, int]) -> None:
    """Run a client command; its result is the exit code, 130 where it was interrupted."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.get_loop().set_exception_handler(_tell)
            code = runner.run(command)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    if code:
        raise typer.Exit(code)


def _tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """aiohttp writes bodies in tasks that nobody looks at; whoever reads the answer has been told of the same."""
    if not isinstance(context.get("exception"), aiohttp.ClientConnectionError):
        loop.default_exception_handler(context)
