"""Streams: what the gateway remembers of them, and ``/v1/streams``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.asking import Routes, ask
from gateway.params import Params, refuse_unknown
from shared.clock import Clock
from shared.errors import (
    InvalidParameter,
    MalformedJson,
    PayloadTooLarge,
    RequestTimeout,
    StreamConflict,
    UnknownStream,
    UnsupportedMediaType,
)
from shared.partitioning import partitions_of_stream
from shared.ports import NodeLink
from shared.position import CursorWriter, Epoch
from shared.records import StreamInfo
from shared.timestamps import rfc3339
from shared.validation import Pattern, check_stream

if TYPE_CHECKING:
    from gateway.context import GatewayContext

CACHED_STREAMS = 65_536
ABSENT_SECONDS = 1.0
"""How long a stream is taken not to exist after a node said so."""
LEARN_AT_ONCE = 16
"""Questions of one `StreamCatalog.learn` that run at the same time."""


class StreamCatalog:
    """The spread of streams, learned from the nodes once and kept: it cannot change while the stream exists.

    A stream that does not exist counts as spread 1, because that is what its first event makes it. If somebody creates
    it otherwise at that very moment, the log answers `StaleStream` and the sender calls `refresh`.
    """

    def __init__(self, router: Routes, clock: Clock, *, capacity: int = CACHED_STREAMS) -> None:
        self._router = router
        self._clock = clock
        self._half = max(capacity // 2, 1)
        # Two generations: a hit costs one look-up and no reordering, and what was not asked for during the life of a
        # whole generation is forgotten. Together they stay within the capacity.
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}
        self._absent: dict[str, float] = {}
        self._asking: dict[str, asyncio.Future[StreamInfo | None]] = {}

    def cached_spread(self, stream: str) -> int | None:
        """The spread, if it is known without asking."""
        spread = self._young.get(stream)
        if spread is not None:
            return spread
        spread = self._old.get(stream)
        if spread is not None:
            self._keep(stream, spread)
            return spread
        until = self._absent.get(stream)
        return 1 if until is not None and until > self._clock.monotonic() else None

    async def existing_spread(self, stream: str) -> int | None:
        """The spread of a stream that exists; None where it does not. Raises `Unavailable` where no node answers."""
        spread = self.known_spread(stream)
        if spread is not None:
            return spread
        info = await self.refresh(stream)
        return info.spread if info is not None else None

    def known_spread(self, stream: str) -> int | None:
        """The spread of a stream that is known to exist, without asking."""
        return self._young.get(stream) or self._old.get(stream)

    async def spread_of(self, stream: str) -> int:
        """The spread, asking a node where it is not known. Raises `Unavailable` where no node answers."""
        spread = self.cached_spread(stream)
        if spread is not None:
            return spread
        info = await self.refresh(stream)
        return info.spread if info is not None else 1

    async def learn(self, streams: Iterable[str]) -> None:
        """Get to know several streams at once; afterwards `cached_spread` knows them (for a moment, where they do not
        exist). Raises `Unavailable` where no node answers."""
        unknown = sorted({stream for stream in streams if self.cached_spread(stream) is None})
        waiting = iter(unknown)

        async def worker() -> None:
            for stream in waiting:
                await self.refresh(stream)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(LEARN_AT_ONCE, len(unknown))):
                    group.create_task(worker())
        except ExceptionGroup as trouble:
            raise trouble.exceptions[0] from None

    async def refresh(self, stream: str) -> StreamInfo | None:
        """Ask a node about the stream now, and remember. Those who ask for the same stream meanwhile wait for the same
        answer. None: it does not exist."""
        while (asked := self._asking.get(stream)) is not None:
            await asyncio.wait((asked,))
            if not asked.cancelled():
                return asked.result()
            # Whoever asked was cancelled before the answer came: ask oneself.
        answer: asyncio.Future[StreamInfo | None] = asyncio.get_running_loop().create_future()
        self._asking[stream] = answer
        try:
            info = await ask(self._router, lambda link: link.stream(stream))
        except Exception as error:
            answer.set_exception(error)
            answer.exception()  # nobody may be waiting for it
            raise
        else:
            self.remember(stream, info)
            answer.set_result(info)
            return info
        finally:
            answer.cancel()
            del self._asking[stream]

    def remember(self, stream: str, info: StreamInfo | None) -> None:
        """Take over what a node said of a stream."""
        if info is not None:
            self._absent.pop(stream, None)
            self._keep(stream, info.spread)
            return
        self._young.pop(stream, None)
        self._old.pop(stream, None)
        if len(self._absent) >= self._half:
            self._absent.clear()
        self._absent[stream] = self._clock.monotonic() + ABSENT_SECONDS

    @property
    def has_absent(self) -> bool:
        """Whether any stream was found not to exist and is not known to exist since."""
        return bool(self._absent)

    def stored(self, streams: Iterable[str]) -> None:
        """Events of these were stored, so they exist: what counted as absent was routed by spread 1, and rightly so."""
        for stream in streams:
            if self._absent.pop(stream, None) is not None:
                self._keep(stream, 1)

    def _keep(self, stream: str, spread: int) -> None:
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[stream] = spread


# --- the routes -----------------------------------------------------------------------------------

MAX_SETTINGS_BYTES = 64 * 1024
SCAN_PAGE = 1000
SCAN_PAGES = 20
"""A listing by pattern looks at so many streams in one request, then answers with what it found and where to go on."""

_AFTER = re.compile(r"[A-Za-z0-9_.-]{0,200}")


class LastEvent(msgspec.Struct):
    """Where a stream ends."""

    cursor: str
    append_time: str


class StreamView(msgspec.Struct):
    """A stream as clients see it."""

    name: str
    spread: int
    partitions: Sequence[int]
    events: int
    created: str
    last: LastEvent | None

    @classmethod
    def of(cls, info: StreamInfo, *, epoch: Epoch, partitions: int) -> StreamView:
        """Translate what a node said."""
        last = None
        if info.last:
            behind = {partition: offset + 1 for partition, offset in info.last.items()}
            last = LastEvent(CursorWriter(epoch, behind).text(), rfc3339(info.last_ms))
        lives_in = sorted(partitions_of_stream(info.name, partitions=partitions, spread=info.spread))
        return cls(info.name, info.spread, lives_in, info.events, rfc3339(info.created_ms), last)


def json_response(value: Any, *, status: int = 200) -> Response:
    """A JSON answer that no cache keeps."""
    return Response(
        msgspec.json.encode(value), status, media_type="application/json", headers={"cache-control": "no-store"}
    )


async def list_streams(request: Request) -> Response:
    """``GET /v1/streams?stream=&after=&limit=``: streams in byte order of their names."""
    context: GatewayContext = request.app.state.gateway
    params = Params(request.query_params, known=("stream", "after", "limit"))
    limit = params.integer("limit", 100, least=1, most=1000)
    after = params.one("after") or ""
    if _AFTER.fullmatch(after) is None:
        raise InvalidParameter("'after' is the name of the last stream of the page before", parameter="after")
    patterns = [Pattern.parse(text) for text in params.many("stream")]
    if len(patterns) > context.settings.gateway.max_streams:
        raise InvalidParameter(f"at most {context.settings.gateway.max_streams} patterns", parameter="stream")
    found, more = await _scan(context.router, patterns, after=after, limit=limit)
    epoch, partitions = context.router.epoch, context.router.partitions
    return json_response(
        {"streams": [StreamView.of(info, epoch=epoch, partitions=partitions) for info in found], "next": more}
    )


async def _stream_page(link: NodeLink, *, after: str, limit: int) -> Sequence[StreamInfo]:
    return await link.streams(after=after, limit=limit)


async def _scan(
    router: Routes, patterns: Collection[Pattern], *, after: str, limit: int
) -> tuple[list[StreamInfo], str | None]:
    found: list[StreamInfo] = []
    size = SCAN_PAGE if patterns else limit + 1
    for _ in range(SCAN_PAGES):
        page = await ask(router, partial(_stream_page, after=after, limit=size))
        for info in page:
            if len(found) == limit:
                return found, found[-1].name
            if not patterns or any(pattern.matches(info.name) for pattern in patterns):
                found.append(info)
        if len(page) < size:
            return found, None
        after = page[-1].name
    return found, after


async def stream_settings(request: Request) -> Response:
    """``GET`` and ``PUT /v1/streams/{stream}``."""
    if request.method == "PUT":
        return await _put_stream(request)
    context: GatewayContext = request.app.state.gateway
    Params(request.query_params, known=())
    name = check_stream(request.path_params["stream"])
    info = await context.catalog.refresh(name)
    if info is None:
        raise UnknownStream("no event was ever stored in this stream and nobody created it")
    return json_response(StreamView.of(info, epoch=context.router.epoch, partitions=context.router.partitions))


async def _put_stream(request: Request) -> Response:
    context: GatewayContext = request.app.state.gateway
    Params(request.query_params, known=())
    name = check_stream(request.path_params["stream"], writable=True)
    body = await _small_body(request, seconds=context.settings.gateway.body_timeout)
    partitions = context.router.partitions
    spread = _spread_in(body, partitions=partitions)
    info = await ask(context.router, lambda link: link.stream(name))
    created = info is None
    if info is None:
        info = await ask(context.router, lambda link: link.create_stream(name, spread=spread or 1))
    elif spread is not None and spread != info.spread:
        raise StreamConflict(f"the stream exists with spread {info.spread}, which cannot change", spread=info.spread)
    context.catalog.remember(name, info)
    view = StreamView.of(info, epoch=context.router.epoch, partitions=partitions)
    return json_response(view, status=201 if created else 200)


def _spread_in(body: bytes, *, partitions: int) -> int | None:
    try:
        settings = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise MalformedJson('send the settings as JSON, e.g. {"spread": 4}') from None
    if not isinstance(settings, dict):
        raise InvalidParameter('the settings are a JSON object, e.g. {"spread": 4}')
    for field in cast("dict[str, Any]", settings):
        if field != "spread":
            refuse_unknown(field, ("spread",), what="setting")
    spread: Any = cast("dict[str, Any]", settings).get("spread")
    if spread is None and "spread" not in settings:
        return None
    if type(spread) is not int or not 1 <= spread <= partitions:
        raise InvalidParameter(f"'spread' is a whole number from 1 to {partitions}", parameter="spread")
    return spread


async def _small_body(request: Request, *, seconds: float) -> bytes:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise UnsupportedMediaType("send application/json: curl -X PUT --json '{\"spread\": 4}' …")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_SETTINGS_BYTES:
                    raise PayloadTooLarge(f"settings have at most {MAX_SETTINGS_BYTES} bytes", limit=MAX_SETTINGS_BYTES)
    except TimeoutError:
        raise RequestTimeout("the body did not arrive in time") from None
    return bytes(body)


routes = [
    Route("/v1/streams", list_streams, methods=["GET"]),
    Route("/v1/streams/{stream}", stream_settings, methods=["GET", "PUT"]),
]
