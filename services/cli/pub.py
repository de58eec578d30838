"""`cdrs pub`: send events, from arguments, standard input, or a file."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import orjson
import typer

from services.cli.client import DEFAULT_URL, JsonOption, UrlOption, base_url, open_session
from services.cli.feedfile import FeedFile, Mapper, UnusableLine, open_feed_file
from services.cli.output import printable, run, talk, write_json, write_line
from services.cli.progress import SendProgress
from services.cli.sending import LineSource, Piece, Sender, Totals
from shared.errors import StartError

SHOWN_FAILURES = 10


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the flags say about each event."""

    stream: str
    type: str
    source: str | None
    key: str | None
    id: str | None

    def event(self, text: bytes) -> bytes:
        """The CloudEvent of one argument or line: JSON where it parses, else text."""
        if self.id is None and _is_cloudevent(text):
            return text
        attributes: dict[str, Any] = {
            "specversion": "1.0",
            # Made here, not by the server: a repeated attempt must carry the same one.
            "id": self.id or str(uuid.uuid4()),
            "source": self.source or f"/v1/streams/{self.stream}",
            "type": self.type,
        }
        if self.key is not None:
            attributes["partitionkey"] = self.key
        payload = text.strip()
        try:
            orjson.loads(payload)
        except orjson.JSONDecodeError:
            attributes["datacontenttype"] = "text/plain"
            payload = orjson.dumps(text.decode("utf-8", "replace"))
        return orjson.dumps(attributes)[:-1] + b',"data":' + payload.replace(b"\n", b" ").replace(b"\r", b" ") + b"}"


def pub(
    stream: Annotated[str | None, typer.Argument(help="The stream; not with --file.", show_default=False)] = None,
    data: Annotated[
        list[str] | None,
        typer.Argument(help="Payloads: JSON, else text. '-' (or none) reads lines from stdin.", show_default=False),
    ] = None,
    *,
    type: Annotated[str, typer.Option("--type", "-t", help="CloudEvents type.")] = "event",  # noqa: A002
    key: Annotated[str | None, typer.Option("--key", "-k", help="Ordering key.")] = None,
    id: Annotated[str | None, typer.Option("--id", help="Event id; with one payload.")] = None,  # noqa: A002
    source: Annotated[str | None, typer.Option("--source", help="CloudEvents source.", show_default=False)] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Send the payloads so many times.")] = 1,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="JSON lines, also gzipped.")] = None,
    stream_from: Annotated[str | None, typer.Option("--stream-from", help="Field that names the stream.")] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="Put before it as it is, e.g. 'wiki.'.")] = "",
    key_from: Annotated[str | None, typer.Option("--key-from", help="Field with the ordering key.")] = None,
    time_from: Annotated[str | None, typer.Option("--time-from", help="Field with the time (RFC 3339).")] = None,
    attr: Annotated[
        list[str] | None, typer.Option("--attr", help="CloudEvents attribute from a field.", metavar="NAME=FIELD")
    ] = None,
    json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Send events.

    A file's lines are sent as they are; ids come from line number and line, so sending a file again adds nothing.
    """
    gateway = base_url(url)
    if file is not None:
        if stream is not None or stream_from is None:
            raise typer.BadParameter("--file takes its streams from a field: give --stream-from and no STREAM")
        mapper = Mapper(
            stream_from=stream_from,
            source=source or f"cdrs-pub:{quote(file.name)}",
            prefix=prefix,
            key_from=key_from,
            time_from=time_from,
            type=type,
            attributes=dict(_attribute(text) for text in attr or ()),
        ).check()
        run(_pub_file(gateway, file, mapper, json=json))
        return
    if stream is None:
        raise typer.BadParameter("name a stream, or give --file")
    if any((stream_from, prefix, key_from, time_from, attr)):
        raise typer.BadParameter("--stream-from, --prefix, --key-from, --time-from and --attr go with --file")
    payloads = data or ["-"]
    if id is not None and (payloads == ["-"] or len(payloads) * count > 1):
        raise typer.BadParameter("--id goes with one payload")
    run(_pub_data(gateway, Envelope(stream, type, source, key, id), payloads, count=count, json=json))


def _attribute(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not equals or not name or not source:
        raise typer.BadParameter(f"--attr takes NAME=FIELD, not {text!r}")
    return name, source


# --- arguments and standard input -----------------------------------------------------------------


async def _pub_data(url: str, envelope: Envelope, payloads: Sequence[str], *, count: int, json: bool) -> int:
    failures = _Failures()
    source = _StdinSource(envelope) if payloads == ["-"] else LineSource(_repeat(envelope, payloads, count))
    async with open_session() as session:
        sender = Sender(
            session,
            f"{url}/v1/streams/{quote(envelope.stream, safe='')}/events",
            receipts=write_line if json else None,
            on_failure=failures,
            on_retry=_say_retry,
        )
        await sender.send(source)
    if not json:
        _say_totals(sender.totals)
    return 1 if sender.totals.failed else 0


def _repeat(envelope: Envelope, payloads: Sequence[str], count: int) -> Iterator[tuple[int, bytes]]:
    number = 0
    for _ in range(count):
        for payload in payloads:
            number += 1
            yield number, envelope.event(payload.encode("utf-8", "surrogateescape"))


class _StdinSource:
    """Lines of standard input, as they come. A thread reads, since standard input may be a file, a pipe or a terminal;
    it is a daemon, for nothing else could interrupt its reading."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue(maxsize=4)
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._number = 0
        self._ended = False
        self._failure = ""
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def _read(self) -> None:
        with suppress(RuntimeError):  # the loop has ended; nobody wants more
            while True:
                try:
                    chunk = os.read(sys.stdin.fileno(), 65_536)
                except OSError as error:
                    self._failure, chunk = error.strerror or str(error), b""
                asyncio.run_coroutine_threadsafe(self._chunks.put(chunk), self._loop).result()
                if not chunk:
                    return

    async def next(self) -> Piece | None:
        while not self._ended:
            chunk = await self._chunks.get()
            self._ended = not chunk
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if self._ended and self._rest:
                lines.append(self._rest)
            events = [self._envelope.event(line.removesuffix(b"\r")) for line in lines if line.strip()]
            if events:
                numbers = range(self._number + 1, self._number + 1 + len(events))
                self._number += len(events)
                return Piece(b"\n".join([*events, b""]), numbers)
        if self._failure:
            raise StartError(f"standard input cannot be read: {self._failure}")
        return None


def _is_cloudevent(text: bytes) -> bool:
    if not text.lstrip().startswith(b"{") or b'"specversion"' not in text:
        return False
    try:
        value: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and {"specversion", "id", "source", "type"} <= value.keys()


# --- files ----------------------------------------------------------------------------------------


async def _pub_file(url: str, path: Path, mapper: Mapper, *, json: bool) -> int:
    failures = _Failures()
    unusable = 0

    def lines(feed: FeedFile, progress: SendProgress) -> Iterator[tuple[int, bytes]]:
        nonlocal unusable
        for number, line in feed.numbered():
            progress.sent(number, feed.read_bytes)
            try:
                yield number, mapper.event(number, line)
            except UnusableLine as error:
                unusable += 1
                failures(number, str(error))

    with open_feed_file(path) as feed, SendProgress(path.name, feed.size) as progress:
        async with open_session() as session:
            sender = Sender(session, f"{url}/v1/events", on_failure=failures, on_retry=_say_retry)
            try:
                await sender.send(LineSource(lines(feed, progress)))
            except asyncio.CancelledError:
                talk.print("interrupted: run the same command again to go on; what is stored is not stored twice")
                raise
    totals = sender.totals
    totals.lines += unusable
    totals.failed += unusable
    if json:
        write_json({"summary": {**totals.as_dict(), "seconds": round(progress.seconds, 3)}})
    else:
        _say_totals(totals, seconds=progress.seconds)
    return 1 if totals.failed else 0


class _Failures:
    """Tells of the first failures, counts the rest."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, number: int, reason: str) -> None:
        self.count += 1
        if self.count <= SHOWN_FAILURES:
            talk.print(printable(f"line {number}: {reason}"))
        elif self.count == SHOWN_FAILURES + 1:
            talk.print("… and more; the count follows at the end")


def _say_retry(reason: str, pause: float) -> None:
    talk.print(printable(f"{reason}; again in {pause:.1f} s"))


def _say_totals(totals: Totals, *, seconds: float | None = None) -> None:
    rate = f" in {seconds:.1f} s, {totals.lines / seconds:,.0f} events/s" if seconds else ""
    failed = f", {totals.failed:,} failed" if totals.failed else ""
    talk.print(f"{totals.stored:,} stored, {totals.duplicates:,} duplicates{failed}{rate}")
