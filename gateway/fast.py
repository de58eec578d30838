"""The fast write path: under our own protocol class a subscribed connection is handed to the hub.

Once its stream is live, nothing is left of the request: no task, queue, timer or generator; uvicorn's protocol,
parser and request are gone. What remains is the transport, this object as its protocol, and a `Subscriber`. History
is read by a task for as long as that takes. When the stream ends, the connection goes back to its server.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

from gateway import ahead
from gateway.catch_up import catch_up
from gateway.lingering import LingeringTransport
from gateway.sockets import (
    ANSWER_SEND_BUFFER,
    NARROW,
    NO_SOCKET,
    bound_receiving,
    bound_sending,
    outstanding,
    plain_socket,
    set_kernel_timeout,
)
from gateway.views import http_chunk
from shared.errors import ServerError
from shared.sse import bye_block

if TYPE_CHECKING:
    from gateway.context import GatewayContext
    from gateway.origin import Origin
    from gateway.subscriber import Subscriber
    from gateway.views import Selection

log = logging.getLogger(__name__)

LAST_CHUNK = b"0\r\n\r\n"


class FastConnection(asyncio.Protocol):
    """The writer of one subscriber, and the protocol of its connection."""

    __slots__ = (
        "_closing", "_context", "_keep_alive", "_origin", "_paused", "_received", "_selection", "_subscriber",
        "_task", "_transport", "_waiter", "is_over", "ready",
    )  # fmt: skip

    def __init__(self, context: GatewayContext, transport: asyncio.Transport, origin: Origin, keep_alive: bool) -> None:
        self.ready = False
        self.is_over = False
        """The stream has ended; the connection may still be closing."""
        self._context = context
        self._transport = transport
        self._origin = origin
        self._keep_alive = keep_alive
        self._paused = False
        self._received = b""
        self._subscriber: Subscriber | None = None
        self._selection: Selection | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._closing: LingeringTransport | None = None
        origin.lend(self)
        transport.set_protocol(self)
        # One write that the client has not taken is the whole buffer. Where something is left of an earlier answer
        # this pauses at once: it is this protocol that must be told.
        transport.set_write_buffer_limits(high=0)
        transport.resume_reading()  # a request with a large body may have paused it

    # --- the stream ------------------------------------------------------------------------------

    def begin(self, subscriber: Subscriber, selection: Selection, opening: bytes, *, head: bytes = b"") -> None:
        """Write the first blocks, behind the answer's ``head``. Then frames follow if the subscriber is live, else
        `catch_up` must come next."""
        view = subscriber.view
        self._subscriber, self._selection = subscriber, selection if view is None else view.selection
        self._transport.write(head + http_chunk(subscriber.first(opening)))
        if subscriber.live and not self._paused:
            self._go_on(subscriber)

    def _go_on(self, subscriber: Subscriber) -> None:
        self.ready = True
        subscriber.socket = plain_socket(self._transport)
        self._context.hub.service(subscriber)

    def _hold(self) -> None:
        """Nothing more for the moment."""
        self.ready = False
        if self._subscriber is not None:
            self._subscriber.socket = NO_SOCKET

    def write(self, chunk: bytes) -> None:
        """Of the hub: one chunk of the body, ready made."""
        self._transport.write(chunk)

    def lag(self) -> None:
        """The frames needed next are gone: read history."""
        self._hold()
        self.catch_up(resuming=True)

    def catch_up(self, *, resuming: bool, told_gap: bool = False) -> None:
        """Go through history to the live view, in a task of the hub's."""
        if self._task is None and not self.is_over:
            self._task = self._context.hub.spawn(self._catch_up(resuming, told_gap), "catch-up")

    async def _catch_up(self, resuming: bool, told_gap: bool) -> None:
        subscriber, selection = self._subscriber, self._selection
        assert subscriber is not None
        assert selection is not None
        blocks = catch_up(self._context, subscriber, selection, resuming=resuming, told_gap=told_gap)
        try:
            async with aclosing(blocks):
                await self._writable()
                async for block in blocks:
                    self._transport.write(http_chunk(subscriber.coded(block)))
                    await self._writable()
        except ServerError as error:
            log.warning("stream ended: %s", error)
            self._task = None
            hub = self._context.hub
            hub.close(subscriber, "overload")
            self.finish(bye_block("overload", hub.jittered_retry()))
        except Exception:
            log.exception("an event stream failed")
            self._task = None
            self._transport.abort()
        else:
            self._task = None
            self._go_on(subscriber)

    async def _writable(self) -> None:
        """Wait until the client has taken what was written; the stall watch bounds it."""
        if self._paused:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def finish(self, blocks: bytes) -> None:
        """The last blocks, and the end of the answer. The connection is used again if the client wants to."""
        if self.is_over:
            return
        self._end()
        transport = self._transport
        if transport.is_closing():
            return
        assert self._subscriber is not None
        transport.write(http_chunk(self._subscriber.last(blocks)) + LAST_CHUNK)
        self._subscriber = None  # it points back here; without that, both go at once and not with the collector
        if self._keep_alive:
            self._origin.forget(self)
            self._origin.take_back(transport, self._received, is_paused=self._paused)
        else:
            self._close(is_sending=bool(self._received))

    def _close(self, *, is_sending: bool) -> None:
        """Once everything is written: that has an end for a client that does not take it."""
        loop = asyncio.get_running_loop()
        self._closing = LingeringTransport(self._transport, lambda: is_sending, loop)
        self._closing.close()

    def _end(self) -> None:
        """Nothing is written any more. Idempotent."""
        self.is_over = True
        self._hold()
        self._context.hub.stalls.forget(self)
        if self._task is not None:
            self._task.cancel()
            self._task = None

    # --- the connection --------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closing is not None:
            self._closing.lost()
        self._leave("client")
        self._origin.forget(self)

    def eof_received(self) -> bool:
        """Whoever follows an event stream and ends its side has gone, as on the portable path."""
        self._leave("client")
        if self._closing is None:
            self._close(is_sending=False)
        return False

    def _leave(self, reason: str) -> None:
        self._end()
        if self._subscriber is not None:
            self._context.hub.close(self._subscriber, reason)
            self._subscriber = None

    def data_received(self, data: bytes) -> None:
        """The next request, sent ahead: it waits until the stream has ended. No more is read meanwhile."""
        if self.is_over:
            return
        self._received += data
        self._transport.pause_reading()
        # Whoever sends more and reads nothing shall not hold more than others.
        bound_receiving(self._transport, NARROW)
        bound_sending(self._transport, ANSWER_SEND_BUFFER)
        self._look_behind()

    def _look_behind(self) -> None:
        if self._paused and len(self._received) > ahead.UNREAD:
            self.cut()

    def pause_writing(self) -> None:
        self._hold()
        self._paused = True
        if not self.is_over:  # else its last blocks; the connection is another's before they have left
            self._context.hub.stalls.add(self)
            self._look_behind()

    def resume_writing(self) -> None:
        self._paused = False
        self._context.hub.stalls.discard(self)
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            if not waiter.done():
                waiter.set_result(None)
        elif self._task is None and self._subscriber is not None and not self.is_over:
            self._go_on(self._subscriber)

    def shutdown(self) -> None:
        """Of uvicorn, when the server ends: the answer under way is the last one."""
        self._keep_alive = False

    # --- a client that takes nothing -------------------------------------------------------------

    def outstanding(self) -> int:
        """Bytes that have not reached the client: ours, and what the kernel holds unacknowledged."""
        return outstanding(self._transport)

    def set_kernel_timeout(self, seconds: float) -> None:
        """See `gateway.sockets`."""
        set_kernel_timeout(self._transport, seconds)

    def cut(self) -> None:
        """No byte has left for too long."""
        self._leave("slow")
        self._transport.abort()
