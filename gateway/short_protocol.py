"""The protocol class with the short ways: what `gateway.shortcut` and `gateway.short_streams` take never becomes a
request of ASGI's.

A request is looked at where nothing else is under way on its connection and it begins with the bytes just received.
While one is answered, what comes behind it waits here: answers keep their order. What is declined is the parser's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from gateway.protocol import CdrsHttpProtocol
from gateway.short_posts import Headers, Post
from gateway.short_streams import StreamShortcut, Visit
from gateway.shortcut import Fields, Length, Shortcut, Target, content_length
from shared.descriptors import room
from shared.settings import GatewaySettings

REST_WITHIN = 0.05
"""Seconds in which the body is waited for here of a request whose head came alone; then the application waits."""


def http_protocol(
    settings: GatewaySettings, shortcut_: Shortcut | None = None, streams_: StreamShortcut | None = None
) -> type[asyncio.Protocol]:
    """The protocol class for ``uvicorn.Config(http=…)`` with these limits and these short ways."""

    class ConfiguredProtocol(ShortcutProtocol):
        limits = settings
        shortcut = shortcut_
        streams = streams_
        room = room()

    return ConfiguredProtocol


class ShortcutProtocol(CdrsHttpProtocol):
    """One client's connection."""

    shortcut: Shortcut | None = None
    streams: StreamShortcut | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._post: Post | None = None
        """The request on its short way."""
        self._held = b""
        """What came behind it, or the start of a request whose rest is waited for."""
        self._has_more = False
        """Something that came behind it is still to be looked at."""
        self._rest_timer: asyncio.TimerHandle | None = None
        self._has_ended = False
        """The client has ended its side since the request was taken."""
        self._block: bytes | None = None
        """The header fields of the request that the parser is fed by itself, as it may take the short way."""
        self._length = 0
        """The length of its body, as far as was seen."""
        self._short: Fields | None = None
        """What its header fields say, if it may."""
        self._is_alone = False
        """What the parser is fed is one whole request without a body, and nothing else is under way."""
        self._visit: Visit | None = None
        """The request for an event stream that waits for its turn."""
        self._is_whole = self._is_answered = self._has_waited = False
        self._unwanted_rest = 0
        """Bytes still to come of the body of a request that was refused."""
        self._answered_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._write = transport.write
        super().connection_made(transport)

    # --- what comes ------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._unwanted_rest:
            data = self._without_unwanted(data)
            if not data:
                return
        if not self._is_over and not self.is_surplus and self.shortcut is not None:
            if self._post is not None or self._visit is not None or (self.flow.write_paused and self._is_between()):
                self._hold(data)
                return
            if self._held:
                data = self._unhold() + data
            if self._is_between():
                data = self._take(self.shortcut, data)
                if not data:
                    return
                self._has_waited = False
                if self.streams is not None and data.startswith(b"GET ") and data.find(b"\r\n\r\n") == len(data) - 4:
                    self._ask(self.streams, data)
                    return
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        if self._post is not None or (self._visit is not None and self._held):
            self._has_ended = True
            return True
        if self._held:
            super().data_received(self._unhold())
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unhold()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._held and self._post is None:
            self._go_on()

    def shutdown(self) -> None:
        self._is_leaving = True
        if self._post is None and self._visit is None:
            if self._held:
                super().data_received(self._unhold())
            super().shutdown()

    # --- one request after the other -------------------------------------------------------------

    def _is_between(self) -> bool:
        """Whether the next byte begins a request and none is under way."""
        if self._post is not None or self._visit is not None or self._in_head:
            return False
        cycle = self._current()
        return cycle is None or (cycle.response_complete and not cycle.more_body and not self.pipeline)

    def _is_in_body(self) -> bool:
        return self._short is not None or super()._is_in_body()

    def _take(self, shortcut: Shortcut, data: bytes) -> bytes:
        """Take request after request; what is returned is for the parser."""
        while data:
            end_of_line = data.find(b"\r\n")
            target = shortcut.target(data[:end_of_line]) if end_of_line > 0 else None
            if target is None:
                break
            end = data.find(b"\r\n\r\n", end_of_line)
            if end < 0:
                break
            block, start = data[end_of_line + 2 : end], end + 4
            fields = shortcut.fields(block)
            if fields is None:
                stop = self._look(shortcut, target, block, data, start)
                if stop is None:
                    break
            else:
                stop = start + fields.length
                if stop > len(data):
                    return self._wait_for_rest(data)
                self._has_more = stop < len(data)
                if not self._begin(shortcut, target, fields, data[start:stop]):
                    break
            data = data[stop:]
            if self._is_over:
                return b""
            if self._post is not None or (data and self.flow.write_paused):
                if data:
                    self._hold(data)
                return b""
            if not self._is_between():
                break
        self._has_more = False
        return data

    def _begin(self, shortcut: Shortcut, target: Target, fields: Fields, body: bytes) -> bool:
        self._is_answered = False
        post = shortcut.take(self, target, fields, body)
        if post is None:
            return False
        if not self._is_answered:
            self._post = post
        self._has_waited = False
        self._stop_head_timer()
        return True

    def _refuse_batch(self, shortcut: Shortcut, target: Target, length: Length, here: int) -> bool:
        """Refuse a batch by its head; of its body so much is ``here``, and the rest is thrown away as it comes."""
        missing = max(length.value - here, 0)
        self._unwanted_rest = missing
        if not shortcut.refuse_batch(self, target, length):
            self._unwanted_rest = 0
            return False
        self._has_waited = False
        self._stop_head_timer()
        if missing and not self._is_over:
            # It has as long to come as the head of the next request.
            self._head_timer = self.loop.call_later(self.limits.header_timeout, self._head_timed_out)
        return True

    def _without_unwanted(self, data: bytes) -> bytes:
        cut = min(len(data), self._unwanted_rest)
        self._unwanted_rest -= cut
        if not self._unwanted_rest:
            self._stop_head_timer()
        return data[cut:]

    def _must_linger(self) -> bool:
        return super()._must_linger() or self._unwanted_rest > 0

    def _look(self, shortcut: Shortcut, target: Target, block: bytes, data: bytes, start: int) -> int | None:
        """A request whose fields are not known, or differ each time: refuse a batch by its head where there is no room,
        else have the parser read all of it. Where it ends; None where it is not all here, and the parser's to wait."""
        length = content_length(block)
        if length is None:
            return None
        stop = start + length.value
        self._has_more = stop < len(data)
        if not self._refuse_batch(shortcut, target, length, len(data) - start):
            if stop > len(data):
                return None
            self._read(shortcut, target, block, data[:stop], start)
        return stop

    def _read(self, shortcut: Shortcut, target: Target, block: bytes, request: bytes, start: int) -> None:
        """Have the parser read one whole request, and take it if it may be taken; else it is the application's."""
        self._block, self._length, self._is_whole = block, len(request) - start, False
        super().data_received(request)
        self._block, fields, self._short = None, self._short, None
        if fields is None or self._is_over:
            return
        if self._is_whole and self._begin(shortcut, target, fields, request[start:]):
            return
        self._give_back(fields.keep_alive, request[start:])

    def _give_back(self, keep_alive: bool, body: bytes = b"") -> None:
        """The request that the parser has read last is the application's after all."""
        self._stop_head_timer()
        super()._begin_request()
        self.cycle.keep_alive = keep_alive  # behind the end of a request, the parser has forgotten it
        if body:
            super().on_body(body)
        if self._is_whole:
            super().on_message_complete()

    def _begin_request(self) -> None:
        if self._is_alone and self.streams is not None:
            assert self.parser is not None
            keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
            self._visit = self.streams.visit(self.parser.get_method(), self.url, self.headers, keep_alive=keep_alive)
            if self._visit is not None:
                return
        if self._block is not None and self.shortcut is not None:
            assert self.parser is not None
            fields = self.shortcut.read(self._block, self.headers, keep_alive=self.parser.should_keep_alive())
            if fields is not None and fields.length == self._length:
                self._short = fields
                return
        super()._begin_request()

    def on_body(self, body: bytes) -> None:
        if self._short is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._short is None and self._visit is None:
            super().on_message_complete()
        else:
            self._is_whole = True

    # --- event streams ---------------------------------------------------------------------------

    def _ask(self, streams: StreamShortcut, request: bytes) -> None:
        """Have the parser read one whole request, which may ask for an event stream and then waits for its turn."""
        self._is_alone, self._is_whole = True, False
        super().data_received(request)
        self._is_alone = False
        if self._visit is not None and not self._is_over:
            streams.turnstile.call(self._enter)

    def _enter(self) -> None:
        """It is this request's turn."""
        visit, self._visit, transport = self._visit, None, self.transport
        try:
            if visit is not None and not self._is_over and not transport.is_closing():
                self._serve_visit(visit)
        except Exception:  # nobody else would end it, as it is neither the application's nor the hub's
            logging.getLogger(__name__).exception("an event stream could not be begun")
            transport.abort()

    def _serve_visit(self, visit: Visit) -> None:
        """If it cannot have its stream at once, it is the application's."""
        can_detach = self._is_whole and not self._held and not self._is_leaving and not self.flow.write_paused
        if can_detach and self.streams is not None and self.streams.begin(self, visit):
            return
        self._give_back(visit.keep_alive)
        if self._held:
            self.flow.resume_reading()
            super().data_received(self._unhold())
        self._end_if_asked()

    def _end_if_asked(self) -> None:
        """What client and server wanted while a request was on its short way."""
        if self._has_ended and self._post is None and not self._is_over:
            self._has_ended = False
            if not self.eof_received():
                self.transport.close()
        if self._is_leaving and self._post is None and not self._is_over:
            self.shutdown()

    def _is_idle(self) -> bool:
        return self._visit is None and super()._is_idle()

    @property
    def peer(self) -> str:
        """See `gateway.short_streams.Connection`."""
        return self.client[0] if self.client else ""

    # --- what waits ------------------------------------------------------------------------------

    def _hold(self, data: bytes) -> None:
        self._held += data
        self.flow.pause_reading()
        self._look_behind()

    def _behind_bytes(self) -> int:
        return super()._behind_bytes() + len(self._held)

    def _unhold(self) -> bytes:
        data, self._held = self._held, b""
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None
        return data

    def _wait_for_rest(self, data: bytes) -> bytes:
        """Many clients send head and body one after the other."""
        self._has_more = False
        if self._has_waited:
            return data
        self._has_waited = True
        self._held = data
        self._rest_timer = self.loop.call_later(REST_WITHIN, self._rest_is_late)
        return b""

    def _rest_is_late(self) -> None:
        self._rest_timer = None
        super().data_received(self._unhold())

    def _go_on(self) -> None:
        """With what was held while a request was being answered."""
        self.flow.resume_reading()
        self.data_received(self._unhold())
        self._end_if_asked()

    # --- for the shortcut ------------------------------------------------------------------------

    @property
    def default_headers(self) -> Headers:
        """See `gateway.shortcut.Connection`."""
        return self.server_state.default_headers

    @property
    def must_close(self) -> bool:
        """See `gateway.shortcut.Connection`."""
        return (self._has_ended or self._is_leaving) and not self._held and not self._has_more

    def answer(self, data: bytes, *, close: bool) -> None:
        """See `gateway.shortcut.Connection`."""
        was_waiting, self._post, self._is_answered = self._post is not None, None, True
        if self._is_over:
            return
        self.server_state.total_requests += 1
        self._write(data)
        if close:
            self.transport.close()
            return
        self._answered_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._watch_idleness(self.timeout_keep_alive)
        if was_waiting and self._held and not self.flow.write_paused:
            self._go_on()
        elif self._is_narrow and not self._has_more:
            self._widen_if_taken()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """See `gateway.shortcut.Connection`."""
        task = self.loop.create_task(work)
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    # --- idleness --------------------------------------------------------------------------------

    def _watch_idleness(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """A timer is not set anew for each request on its short way, but looks when the last one was answered."""
        self.timeout_keep_alive_task = None
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if self._post is not None or self._visit is not None or self._held:
            left = self.timeout_keep_alive
        if left > 0:
            self._watch_idleness(left)
        else:
            super().timeout_keep_alive_handler()
