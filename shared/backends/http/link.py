"""A node in another process, over HTTP."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec

from shared.backends.http.messages import (
    CALL,
    FEED,
    HANDOFF,
    HANDOFFS,
    FeedRequest,
    HandoffAnswer,
    HandoffRequest,
    HandoffsRequest,
)
from shared.direct import HandedOver
from shared.errors import CdrsError, LinkBroken
from shared.position import Epoch
from shared.records import FeedBatch, HistoryPage, NewEvent, NodeInfo, PageQuery, Record, Settlement, StreamInfo
from shared.wire import CONTENT_TYPE, MAX_MESSAGE, FrameReader, WireError, decode, encode

T = TypeVar("T")

KEEP_ALIVE = 30.0
"""Seconds an idle connection is kept; less than the node keeps its side, so that it is always this side that closes."""
READ_BUFFER = 512 * 1024
LARGE_BODY = 1024 * 1024
TOGETHER_BYTES = 4 * 1024 * 1024
"""What the events of several partitions are put into one request up to; a larger handoff has a request of its own."""
KEPT_CONNECTIONS = 40
"""Of all connections, those that questions about the past leave to everything else: a crowd that comes back must not
hold up handoffs, feeds and signs of life."""
ANSWER_SHARE = 0.9
"""How much of a handoff's timeout the node gets; the rest is for its answer to arrive."""

_settlements = msgspec.msgpack.Decoder(list[Settlement])
_answers = msgspec.msgpack.Decoder(HandoffAnswer)
_batches = msgspec.msgpack.Decoder(FeedBatch)
_node_info = msgspec.msgpack.Decoder(NodeInfo)
_offsets = msgspec.msgpack.Decoder(dict[int, int])
_page = msgspec.msgpack.Decoder(HistoryPage)
_records = msgspec.msgpack.Decoder(list[Record])
_time: msgspec.msgpack.Decoder[int | None] = msgspec.msgpack.Decoder(int | None)
_streams = msgspec.msgpack.Decoder(list[StreamInfo])
_stream: msgspec.msgpack.Decoder[StreamInfo | None] = msgspec.msgpack.Decoder(StreamInfo | None)
_created = msgspec.msgpack.Decoder(StreamInfo)
_BROKEN = (aiohttp.ClientError, OSError, TimeoutError, RuntimeError, msgspec.DecodeError, ValueError)
"""What a connection that cannot be trusted any more raises; RuntimeError is aiohttp's for one closed under a call."""


class HttpNodeLink:
    """`shared.ports.NodeLink` over HTTP/1.1 with connections kept alive.

    Every failure of the connection, an answer that is not understood, and silence beyond a timeout is `LinkBroken`.
    Errors that the node itself reports keep their class.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout: float = 1.0,
        call_timeout: float = 5.0,
        feed_timeout: float = 3.0,
        max_connections: int = 100,
    ) -> None:
        """``feed_timeout``: silence after which a feed counts as broken; a node sends something every second."""
        self.url = url.rstrip("/")
        self._connect_timeout = connect_timeout
        self._call_timeout = call_timeout
        self._feed_timeout = feed_timeout
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None
        self._questions = asyncio.Semaphore(max(max_connections - KEPT_CONNECTIONS, 1))
        self._feeding: set[aiohttp.ClientResponse] = set()
        self._handing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """`NodeLink.close`: feeds and calls under way break."""
        self._is_closed = True
        for response in tuple(self._feeding):
            # Closing alone would leave whoever waits for the next bytes waiting.
            response.content.set_exception(LinkBroken(f"{self.url}: this link was closed"))
        handing = tuple(self._handing)
        for task in handing:
            task.cancel()
        if handing:
            await asyncio.wait(handing)
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def append(
        self, epoch: Epoch, partition: int, events: Sequence[NewEvent], *, timeout: float
    ) -> Sequence[Settlement]:
        """`Handoff.append`, answered within ``timeout`` whatever happens to the node."""
        request = HandoffRequest(epoch, partition, list(events), timeout * ANSWER_SHARE)
        body = await self._post(HANDOFF, encode(request), timeout)
        settled = self._decoded(_settlements, body)
        if len(settled) != len(events):
            raise LinkBroken(f"{self.url}: an answer for other events")
        return settled

    @property
    def commits_together(self) -> bool:
        """`DirectHandoff.commits_together`: how the node's log commits is not known here."""
        return False

    def hand_over(self, epoch: Epoch, handoffs: Sequence[HandedOver], *, timeout: float) -> None:
        """`DirectHandoff.hand_over`: one request for all of them, within `TOGETHER_BYTES`."""
        for together in _portions(handoffs):
            task = asyncio.get_running_loop().create_task(self._hand_over(epoch, together, timeout))
            self._handing.add(task)
            task.add_done_callback(self._handing.discard)

    async def _hand_over(self, epoch: Epoch, handoffs: Sequence[HandedOver], timeout: float) -> None:
        waiting = dict(enumerate(handoffs))
        failure: CdrsError = LinkBroken(f"{self.url}: this link was closed")
        try:
            async with asyncio.timeout(timeout):
                failure = await self._exchange(epoch, waiting, timeout * ANSWER_SHARE)
        except CdrsError as error:
            failure = error
        except _BROKEN as error:
            failure = self._broken(error)
        finally:
            for _, _, answered in waiting.values():
                answered(failure)

    async def _exchange(self, epoch: Epoch, waiting: dict[int, HandedOver], timeout: float) -> CdrsError:
        """Send them, and take out those that are answered. Returns what is wrong with an answer that ends before all
        are."""
        handoffs = [(partition, list(events)) for partition, events, _ in waiting.values()]
        body = encode(HandoffsRequest(epoch, handoffs, timeout))
        post = self._open().post(self.url + HANDOFFS, data=_payload(body), allow_redirects=False)
        async with post as response:
            if response.status != 200:
                raise self._reported(response.status, await self._read(response))
            frames = FrameReader()
            async for data in response.content.iter_any():
                for message in frames.feed(data):
                    self._settle(_answers.decode(message), waiting)
        return LinkBroken(f"{self.url}: the answer was cut off")

    def _settle(self, answer: HandoffAnswer, waiting: dict[int, HandedOver]) -> None:
        if answer.index not in waiting:
            raise LinkBroken(f"{self.url}: an answer for other events")
        _, events, answered = waiting[answer.index]
        if answer.error is None and len(answer.settlements) != len(events):
            raise LinkBroken(f"{self.url}: an answer for other events")
        del waiting[answer.index]
        answered(answer.settlements if answer.error is None else answer.error.error())

    @asynccontextmanager
    async def feed(self, epoch: Epoch, positions: Mapping[int, int]) -> AsyncGenerator[AsyncIterator[FeedBatch]]:
        """`Feed.feed`."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout, sock_read=self._feed_timeout)
        body = encode(FeedRequest(epoch, dict(positions)))
        try:
            async with asyncio.timeout(self._connect_timeout + self._feed_timeout):
                response = await self._open().post(self.url + FEED, data=body, timeout=timeout, allow_redirects=False)
        except _BROKEN as error:
            raise self._broken(error) from error
        try:
            if response.status != 200:
                raise self._reported(response.status, await self._read(response))
            self._feeding.add(response)
            yield _FeedReader(self, response)
        finally:
            self._feeding.discard(response)
            response.close()

    async def info(self) -> NodeInfo:
        """`History.info`."""
        return await self._call("info", _node_info)

    async def ends(self) -> Mapping[int, int]:
        """`History.ends`."""
        return await self._call("ends", _offsets)

    async def starts(self) -> Mapping[int, int]:
        """`History.starts`."""
        return await self._ask("starts", _offsets)

    async def page(self, query: PageQuery) -> HistoryPage:
        """`History.page`."""
        return await self._ask("page", _page, query)

    async def find(self, stream: str, event_id: str, source: str | None) -> Sequence[Record]:
        """`History.find`."""
        return await self._ask("find", _records, stream, event_id, source)

    async def offset_at(self, append_ms: int) -> Mapping[int, int]:
        """`History.offset_at`."""
        return await self._ask("offset_at", _offsets, append_ms)

    async def append_time(self, partition: int, offset: int) -> int | None:
        """`History.append_time`."""
        return await self._ask("append_time", _time, partition, offset)

    async def streams(self, *, after: str, limit: int) -> Sequence[StreamInfo]:
        """`History.streams`."""
        return await self._ask("streams", _streams, after, limit)

    async def stream(self, name: str) -> StreamInfo | None:
        """`History.stream`."""
        return await self._call("stream", _stream, name)

    async def create_stream(self, name: str, *, spread: int) -> StreamInfo:
        """`History.create_stream`."""
        return await self._call("create_stream", _created, name, spread)

    async def _ask(self, name: str, result: msgspec.msgpack.Decoder[T], *arguments: object) -> T:
        async with self._questions:
            return await self._call(name, result, *arguments)

    async def _call(self, name: str, result: msgspec.msgpack.Decoder[T], *arguments: object) -> T:
        body = await self._post(CALL + name, encode(arguments), self._call_timeout)
        return self._decoded(result, body)

    async def _post(self, path: str, body: bytes, timeout: float) -> bytes:
        try:
            async with (
                asyncio.timeout(timeout),
                self._open().post(self.url + path, data=_payload(body), allow_redirects=False) as response,
            ):
                answer = await self._read(response)
        except _BROKEN as error:
            raise self._broken(error) from error
        if response.status != 200:
            raise self._reported(response.status, answer)
        return answer

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if (response.content_length or 0) > MAX_MESSAGE:
            raise self._broken(ValueError("an answer too large"))
        try:
            return await response.read()
        except _BROKEN as error:
            raise self._broken(error) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._is_closed:
            raise LinkBroken(f"{self.url}: this link was closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=KEEP_ALIVE),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout),
                headers={"content-type": CONTENT_TYPE, "accept-encoding": "identity"},
                auto_decompress=False,
                read_bufsize=READ_BUFFER,
            )
        return self._session

    def _decoded(self, decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
        try:
            return decoder.decode(body)
        except msgspec.DecodeError as error:
            raise self._broken(error) from error

    def _reported(self, status: int, body: bytes) -> CdrsError:
        try:
            return decode(body, WireError).error()
        except msgspec.DecodeError:
            return LinkBroken(f"{self.url}: status {status} without an explanation")

    def _broken(self, error: Exception) -> LinkBroken:
        return LinkBroken(f"{self.url}: {type(error).__name__}")


def _portions(handoffs: Sequence[HandedOver]) -> Iterator[Sequence[HandedOver]]:
    portion: list[HandedOver] = []
    size = 0
    for handoff in handoffs:
        more = sum([len(event.value) for event in handoff[1]])
        if portion and size + more > TOGETHER_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(handoff)
        size += more
    if portion:
        yield portion


def _payload(body: bytes) -> bytes | io.BytesIO:
    """What aiohttp takes: it wants large bodies as a file, so as to send them in pieces."""
    return body if len(body) <= LARGE_BODY else io.BytesIO(body)


class _FeedReader:
    """Batches out of one long response."""

    def __init__(self, link: HttpNodeLink, response: aiohttp.ClientResponse) -> None:
        self._link = link
        self._content = response.content
        self._frames = FrameReader()
        self._ready: list[bytes] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FeedBatch:
        try:
            while not self._ready:
                data = await self._content.readany()
                if not data:
                    raise LinkBroken(f"{self._link.url}: the node ended the feed")
                self._ready = list(self._frames.feed(data))
                self._ready.reverse()
            return _batches.decode(self._ready.pop())
        except _BROKEN as error:
            raise LinkBroken(f"{self._link.url}: {type(error).__name__}") from error
