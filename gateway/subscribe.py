"""GET on event paths: a subscription as server-sent events, or a page of history as JSON."""

from __future__ import annotations

import asyncio
import gzip
import logging
import random
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.asked import Asked, read_asked
from gateway.catch_up import CAUGHT_UP, catch_up
from gateway.context import GatewayContext
from gateway.event_stream import EventStream, detachable, own_connection, send_head, transport_of
from gateway.fast import FastConnection
from gateway.negotiation import Coding, prefers_json
from gateway.pages import page_response
from gateway.selection import select, select_now
from gateway.sockets import bound_socket
from gateway.starts import Start, resolve_start, start_now
from gateway.subscriber import Subscriber, Writer
from gateway.views import Selection
from gateway.writers import PortableWriter
from shared.errors import ServerError
from shared.position import CursorWriter
from shared.sse import bye_block, control_block, cursor_block, retry_block

if TYPE_CHECKING:
    from gateway.protocol import CdrsHttpProtocol, Detached

log = logging.getLogger(__name__)

READY_TIMEOUT = 5.0
"""Seconds a subscription waits for a gateway that has just started, before it is told to come back."""


async def events(request: Request) -> Response:
    """One stream, several, or patterns; as an event stream unless JSON is preferred."""
    context = GatewayContext.of(request)
    if prefers_json(request, event_stream_default=True):
        return await page_response(request, context)
    await context.turnstile.enter()
    subscription = Subscription.of(request, context)
    await subscription.prepare()
    bound_socket(transport_of(request.scope), context.settings.sse.stall_timeout)
    if context.settings.sse.write_path != "portable" and detachable(request.scope) is not None:
        return FastAnswer(subscription)
    return subscription.portable()


routes = [
    Route("/v1/streams/{stream}/events", events, methods=["GET"]),
    Route("/v1/events", events, methods=["GET"]),
]


class Subscription:
    """One request's life: placed, replayed, live, ended."""

    def __init__(
        self,
        context: GatewayContext,
        asked: Asked,
        cursor_text: str | None,
        *,
        remote: str,
        connection: CdrsHttpProtocol | None = None,
    ) -> None:
        """``cursor_text``: where it has been, if it says so; ``connection``: under our own protocol class."""
        self._context = context
        self._connection = connection
        self._asked = asked
        self._cursor_text = cursor_text
        self._remote = remote
        self._gzip = False
        self._placed: tuple[Selection, Start] | None = None
        self._refusal = "overload"

    @classmethod
    def of(cls, request: Request, context: GatewayContext) -> Subscription:
        """That of a request. Raises client errors."""
        asked = read_asked(request, context.settings)
        cursor_text = request.headers.get("last-event-id") or asked.cursor
        remote = request.client.host if request.client else ""
        return cls(context, asked, cursor_text, remote=remote, connection=own_connection(request.scope))

    async def prepare(self) -> None:
        """Find out where to start. Raises client errors; what a retry can cure is kept for the stream to say."""
        context = self._context
        if self._is_leaving():
            self._refusal = "drain"
            return
        is_surplus = self._connection is not None and self._connection.is_surplus
        if is_surplus or context.hub.full or not await self._hub_started():
            return
        try:
            asked = self._asked
            selection = await select(context, asked.patterns, wanted=asked.filter, shape=asked.shape)
            start = await resolve_start(context, selection, asked.start, self._cursor_text)
        except ServerError as error:
            log.warning("subscription sent away for now: %s", error)
        else:
            if self._is_leaving():  # by now; whoever begins after a drain gets no farewell
                self._refusal = "drain"
            elif not context.hub.full:  # many may have asked at once
                self._place(selection, start)

    def prepare_now(self) -> bool:
        """The same, where nobody has to be asked or waited for. False: nothing was done, and `prepare` has to see."""
        context, asked = self._context, self._asked
        hub = context.hub
        if context.draining or hub.draining or hub.full or not hub.started:
            return False
        selection = select_now(context, asked.patterns, wanted=asked.filter, shape=asked.shape)
        start = None if selection is None else start_now(context, selection, asked.start, self._cursor_text)
        if selection is None or start is None:
            return False
        self._place(selection, start)
        return True

    def _is_leaving(self) -> bool:
        return self._context.draining or self._context.hub.draining

    def _place(self, selection: Selection, start: Start) -> None:
        coding = self._asked.coding
        self._placed = (selection, start)
        self._gzip = coding is Coding.GZIP or (coding is Coding.EITHER and self._context.hub.is_crowded(selection))

    async def _hub_started(self) -> bool:
        for _ in range(round(READY_TIMEOUT / 0.02)):
            if self._context.hub.started:
                return True
            await asyncio.sleep(0.02)
        return False

    def portable(self) -> Response:
        """The answer through any ASGI server."""
        return EventStream(self.chunks(), settings=self._context.settings, gzip=self._gzip)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Everything that goes to the client, write by write."""
        hub = self._context.hub
        if self._placed is None or hub.full:  # others may have come in before the answer was begun
            if self._connection is not None:
                # Kept open, the connections of those who are sent away would be as many as of those who stay.
                self._connection.leave_after_answer()
            self._context.telemetry.closed(self._refusal)
            retry = hub.jittered_retry()
            farewell = retry_block(retry) + bye_block(self._refusal, retry)
            yield gzip.compress(farewell) if self._gzip else farewell
            return
        writer = PortableWriter()
        subscriber = self._opened(writer)
        try:
            async for chunk in self._serve(subscriber, writer, *self._placed):
                yield chunk
                if writer.ended:
                    break
            hub.detach(subscriber)  # its history may have placed it again
            yield subscriber.last(writer.final())
        except ServerError as error:
            log.warning("stream ended: %s", error)
            hub.close(subscriber, "overload")
            yield subscriber.last(bye_block("overload", hub.jittered_retry()))
        finally:
            hub.close(subscriber, "client")

    async def _serve(
        self, subscriber: Subscriber, writer: PortableWriter, selection: Selection, start: Start
    ) -> AsyncIterator[bytes]:
        yield subscriber.first(self._opening(subscriber, selection, start))
        resuming, told_gap = self._is_resuming, bool(start.gaps)
        while not writer.ended:
            async for chunk in catch_up(self._context, subscriber, selection, resuming=resuming, told_gap=told_gap):
                yield subscriber.coded(chunk)
            async for chunk in self._live(subscriber, writer):
                yield chunk
            writer.lagging = False
            resuming, told_gap = True, False

    def hand_over(self, detached: Detached, *, head: bytes = b"") -> None:
        """Give a connection to the hub. The request ends here. ``head``: that of the answer, if it was not written
        yet."""
        assert self._placed is not None
        (selection, start), hub = self._placed, self._context.hub
        fast = FastConnection(self._context, *detached)
        subscriber = self._opened(fast, framed=True)
        opening = self._opening(subscriber, selection, start)
        place = hub.join(subscriber, selection)
        is_there = all(place[partition] == start.next[partition] for partition in selection.partitions)
        if is_there and hub.go_live(subscriber):
            if self._is_resuming:
                self._context.telemetry.resumed("gap" if start.gaps else "ring")
            fast.begin(subscriber, selection, opening + CAUGHT_UP, head=head)
        else:
            fast.begin(subscriber, selection, opening, head=head)
            fast.catch_up(resuming=self._is_resuming, told_gap=bool(start.gaps))

    @property
    def is_placed(self) -> bool:
        """Whether it has a place to start from; else it is only told to come back."""
        return self._placed is not None

    @property
    def is_gzip(self) -> bool:
        """The answer's content coding."""
        return self._gzip

    @property
    def _is_resuming(self) -> bool:
        return self._cursor_text is not None

    def _opened(self, writer: Writer, *, framed: bool = False) -> Subscriber:
        now = self._context.clock.monotonic()
        expires = now + self._context.settings.sse.max_age * random.uniform(1.0, 1.1)
        subscriber = Subscriber(
            writer, b"", remote=self._remote, now=now, expires=expires, framed=framed, gzip=self._gzip
        )
        self._context.hub.open(subscriber)
        return subscriber

    def _opening(self, subscriber: Subscriber, selection: Selection, start: Start) -> bytes:
        hub = self._context.hub
        vector = {**hub.vector.next, **start.next} if selection.vector else start.next
        subscriber.cursor = CursorWriter(hub.epoch, vector).bytes()
        blocks = [retry_block(hub.jittered_retry())]
        for gap in start.gaps:
            self._context.telemetry.gap(gap.reason)
            blocks.append(control_block("cdrs.gap", gap.detail()))
        blocks.append(cursor_block(subscriber.cursor))
        return b"".join(blocks)

    async def _live(self, subscriber: Subscriber, writer: PortableWriter) -> AsyncIterator[bytes]:
        hub = self._context.hub
        while True:
            writer.ready = not writer.ended
            hub.service(subscriber)
            chunk = await writer.take()
            if chunk is None:
                return
            yield chunk  # back here, the chunk has left for the socket


class FastAnswer(Response):
    """A subscription that is handed to the hub once its head is written, if that is still possible then."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = detachable(scope)
        if connection is None or not self._subscription.is_placed:
            await self._subscription.portable()(scope, receive, send)
            return
        await send_head(send, gzip=self._subscription.is_gzip)  # does not wait: nothing has been written before it
        self._subscription.hand_over(connection.detach())
