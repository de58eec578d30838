"""uvicorn's HTTP/1.1 protocol with the bounds it lacks: size and time of headers, ambiguous messages, lingering closes.

llhttp, beneath httptools, refuses contradicting lengths, folded headers, bare line feeds and broken chunks by itself.
What it lets through and we do not: absolute-form targets, more than one Host, transfer codings besides ``chunked``,
TRACE and CONNECT, HTTP/0.9, trailers as headers. Every refusal is a problem document and the end of the connection.
"""

from __future__ import annotations

import asyncio
import logging
import re
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from gateway import ahead
from gateway.heads import check_head, headers_too_large
from gateway.lingering import LingeringTransport
from gateway.origin import Origin
from gateway.problems import raw_problem
from gateway.watched import WatchedProtocol
from shared.descriptors import Room
from shared.errors import CdrsError, InvalidRequest, MethodNotAllowed, RequestTimeout, UriTooLong
from shared.settings import GatewaySettings

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

MAX_TARGET = 8 * 1024
"""Longest request target, in bytes."""
MAX_UNWANTED = 64 * 1024
"""Bytes of a body that are thrown away after its request was answered, before the connection is closed."""

_METHOD_AND_TARGET = re.compile(rb"[\r\n]*[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} ")

Detached = tuple[asyncio.Transport, Origin, bool]
"""A connection that was given away: its transport, where it can be given back to, whether the client uses it again."""

logger = logging.getLogger(__name__)


class CdrsHttpProtocol(WatchedProtocol):
    """One client's connection."""

    limits = GatewaySettings()
    hosts: ClassVar[frozenset[bytes] | None] = None
    """Names with a dot that a client may call us by; None: any."""
    room: ClassVar[Room | None] = None
    """How many connections there may be; None: as many as come."""
    origin: ClassVar[Origin | None] = None
    """The server, for connections that are given away; one for all of them."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._in_head = False
        """The first byte of a request has come, the end of its header fields has not."""
        self._head_bytes = 0
        self._begun = 0
        """Requests that have begun in the bytes received last."""
        self._fields = 0
        self._unwanted = 0
        self._is_over = False
        """Nothing more is read from this connection."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._answering: RequestResponseCycle | None = None
        """The request that is being answered, or was last; `cycle` is the newest."""
        self._behind = b""
        """What was received behind so many requests that it is not parsed yet; see `gateway.ahead`."""
        self._ahead = 0
        """What those take that are parsed and wait for their turn."""
        self._has_eof = False
        """The client has ended its side, and what it sent before is still to be parsed."""
        self._is_leaving = False
        """The server leaves; the connection ends with the last answer."""
        self.is_surplus = False
        """There are nearly too many connections: this one is served one request, and no stream."""

    # --- the connection --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # A transport that held this object would be in a circle with it, left to the collector.
        held = weakref.WeakMethod(self._must_linger)
        lingering = LingeringTransport(transport, lambda: (ask := held()) is not None and ask(), self.loop)
        super().connection_made(cast("asyncio.Transport", lingering))
        if self.room is not None and len(self.connections) > self.room.served:
            self.is_surplus = True
            if len(self.connections) > self.room.most:
                transport.abort()
                return
        # uvicorn's own timer starts with the first answer only.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_over = True
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        cast("LingeringTransport", self.transport).lost()
        super().connection_lost(exc)
        self.pipeline.clear()
        self._behind = b""
        answering, self._answering = self._answering, None
        if answering is not None and not answering.response_complete:
            # uvicorn tells the newest request only, which of several sent ahead is not the one under way.
            answering.disconnected = True
            answering.message_event.set()
        # Both point back here; without that, all of it goes at once and not with the collector.
        self.cycle = self.scope = None  # type: ignore[assignment]

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client ends its side. In the middle of a request that makes the request void; a producer still gets its
        answer; for everything else (an event stream) it means that the client has gone."""
        if self.transport.is_closing():
            return False
        self._has_eof = bool(self._behind)
        if self._has_eof:
            return True
        cycle = self._current()
        if cycle is not None and not self._is_over and (self._in_head or self._awaits_body()):
            self._refuse(InvalidRequest("the request was cut short"))
            return False
        is_unanswered = cycle is not None and not cycle.response_complete and not cycle.disconnected
        if cycle is not None and is_unanswered and cycle.scope["method"] == "POST":
            cycle.keep_alive = False
            return True
        self.transport.close()  # the caller does so, too, but without an end to what the client may not be taking
        return False

    def data_received(self, data: bytes) -> None:
        self._parse_all(self._behind + data)

    def _parse_all(self, data: bytes) -> None:
        """Parse as much as may be, piece by piece; the rest waits, and nothing is read meanwhile."""
        if self.transport.is_closing():
            return
        at = 0
        while at < len(data) and not self._is_over:
            stop, self._ahead = ahead.piece(data, at, self._ahead if self.pipeline else 0)
            if stop == at:
                if not self._is_due():
                    break
                stop = ahead.end_of_one(data, at, in_head=self._in_head, in_body=self._is_in_body())
            self._parse(data[at:stop])
            at = stop
        self._behind = b"" if self._is_over else data[at:]
        self.flow.must_wait = bool(self.pipeline or self._behind)
        if self.flow.must_wait:
            self.flow.pause_reading()
            self._look_behind()

    def _behind_bytes(self) -> int:
        return len(self._behind) + (self._ahead if self.pipeline else 0)

    def _is_due(self) -> bool:
        """Whether what comes next belongs to the request under way, or there is none."""
        cycle = self._current()
        return not self.pipeline and (cycle is None or cycle.response_complete or cycle.more_body)

    def _is_in_body(self) -> bool:
        cycle = self._current()
        return cycle is not None and cycle.more_body and not self._in_head

    def _parse(self, data: bytes) -> None:
        if self._is_over:
            return
        self._unset_keepalive_if_required()
        self._begun = 0
        assert self.parser is not None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # no upgrade is offered; the request has been taken as it is
        except httptools.HttpParserInvalidMethodError:
            is_method = _METHOD_AND_TARGET.match(data) is not None
            self._refuse(MethodNotAllowed() if is_method else InvalidRequest("not an HTTP/1.1 request"))
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, CdrsError) else InvalidRequest("not a valid HTTP/1.1 request"))
        except httptools.HttpParserError:
            self._refuse(InvalidRequest("not a valid HTTP/1.1 request"))
        else:
            self._count_head(data)

    def _count_head(self, data: bytes) -> None:
        """A header field that never ends is not seen by `on_header`, so what came is counted too."""
        if self._in_head:
            if self._begun <= 1:  # else these bytes are other requests' as well
                self._head_bytes += len(data)
            if self._head_bytes > self.limits.max_header_bytes + MAX_TARGET:
                self._refuse(headers_too_large(self.limits))
                return
        elif not self._is_idle() or self.timeout_keep_alive_task is not None:
            return
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.header_timeout, self._head_timed_out)

    # --- the head of a request -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._begun += 1
        self._head_bytes = self._fields = self._unwanted = 0
        self._field_bytes = 0
        self.scope["extensions"] = {"cdrs.transport": self.transport, "cdrs.connection": self}  # type: ignore[dict-item]

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_TARGET:
            raise UriTooLong(f"a request target has at most {MAX_TARGET} bytes", limit=MAX_TARGET)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._field_bytes += len(name) + len(value) + 4
        if self._fields > self.limits.max_headers or self._field_bytes > self.limits.max_header_bytes:
            raise headers_too_large(self.limits)
        if self._in_head:
            super().on_header(name, value)
        # else a trailer: it is no header field, whatever its name

    def on_headers_complete(self) -> None:
        self._stop_head_timer()
        assert self.parser is not None
        version = self.parser.get_http_version()
        check_head(self.parser.get_method(), self.url, version, self.headers, self.hosts)
        self._in_head = False
        self._begin_request()

    def _begin_request(self) -> None:
        """The head is whole and in order: make it a request of the application's."""
        super().on_headers_complete()
        if self.is_surplus:
            self.leave_after_answer()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    # --- time ------------------------------------------------------------------------------------

    def _current(self) -> RequestResponseCycle | None:
        """The newest request; uvicorn's annotation leaves out that there is none at first."""
        return self.cycle

    def _is_idle(self) -> bool:
        cycle = self._current()
        return cycle is None or (cycle.response_complete and not self.pipeline)

    def _awaits_body(self) -> bool:
        cycle = self._current()
        return cycle is not None and cycle.more_body and not cycle.response_complete

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if self._is_over:
            return
        if self._is_idle():
            self._refuse(RequestTimeout(f"the header fields did not end within {self.limits.header_timeout:g} s"))
        else:  # the request before it is still being answered
            self._head_timer = self.loop.call_later(self.limits.header_timeout, self._head_timed_out)

    def leave_after_answer(self) -> None:
        """The answer under way is the last one on this connection."""
        cycle = self._current()
        if cycle is not None:  # else the client has gone
            cycle.keep_alive = False

    # --- event streams ---------------------------------------------------------------------------

    def is_detachable(self) -> bool:
        """Whether nothing is under way but the answer to the newest request, of which nothing was written yet."""
        cycle = self._current()
        if cycle is None or self._is_over or self._in_head or self.pipeline or self._behind or self.flow.write_paused:
            return False
        is_under_way = cycle.more_body or cycle.response_started or cycle.disconnected
        return not is_under_way and not self.transport.is_closing()

    def detach(self, *, keep_alive: bool | None = None) -> Detached:
        """Give the connection away: the transport, where it can be given back to, and whether the client will use it
        again. Nothing of this object or of the request is kept by it, nor by uvicorn, whose task ends with the
        application's. ``keep_alive``: of a request that the application does not know; else the head of the answer
        to the newest request has been written."""
        cycle = self._current()
        if cycle is not None:
            cycle.disconnected = True
            keep_alive = cycle.keep_alive if keep_alive is None else keep_alive
        transport = cast("LingeringTransport", self.transport).inner
        self._is_over = True
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        self._unwatch()
        self.connections.discard(self)
        made = type(self)
        if made.origin is None:
            made.origin = Origin(made, self.config, self.server_state, self.app_state)
        # The parser and the cycle point back here; without that, all of it goes at once and not with the collector.
        self.parser = self.transport = self.cycle = self.scope = self.flow = None  # type: ignore[assignment]
        self._answering = None
        return transport, made.origin, bool(keep_alive)

    # --- bodies nobody reads ---------------------------------------------------------------------

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            self._unwanted += len(body)
            if self._unwanted > MAX_UNWANTED:
                self.transport.close()
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.cycle.response_complete:
            self.cycle.more_body = False
            self._stop_head_timer()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_over or self.transport.is_closing():
            return
        if not self.pipeline:
            self._parse_all(self._behind)
        if not self.flow.must_wait:
            self.flow.resume_reading()
        if self._has_eof and not self._behind:
            self.eof_received()
        cycle = self._current()
        if cycle is not None and cycle.more_body and self._is_idle() and not self.transport.is_closing():
            # What is left of the body has as long to come as the head of the next request.
            self._stop_head_timer()
            self._head_timer = self.loop.call_later(self.limits.header_timeout, self._head_timed_out)

    def shutdown(self) -> None:
        self._is_leaving = True
        super().shutdown()

    def _must_linger(self) -> bool:
        """Whether the client may still be sending: what it has not taken yet would be lost with a close."""
        self._is_over, self._behind = True, b""
        cycle = self._current()
        is_sending = self._in_head or (cycle is not None and cycle.more_body)
        return is_sending or (self._is_leaving and self.outstanding() > 0)

    # --- refusing --------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """uvicorn's own refusals, in our form."""
        self._refuse(InvalidRequest("not a valid HTTP/1.1 request"))

    def _unsupported_upgrade_warning(self) -> None:
        """Anybody may ask for an upgrade; that is nothing to warn of."""

    def _refuse(self, error: CdrsError) -> None:
        """Answer with a problem, if nothing else is being answered, and end the connection."""
        self._is_over = True
        self._stop_head_timer()
        whole = self._last_whole()
        if whole is not None:
            whole.keep_alive = False  # it and those before it get their answers
            return
        cycle = self._current()
        is_answering = cycle is not None and not cycle.response_complete and cycle.response_started
        if not is_answering and not self.transport.is_closing():
            self.transport.write(raw_problem(error, self.server_state.default_headers))
        if cycle is not None and not cycle.response_complete:
            # The application is told that the client has gone, so that it stores nothing of a cut body.
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()

    def _last_whole(self) -> RequestResponseCycle | None:
        """The last of the requests that are whole and not answered; one behind them that is not whole is dropped."""
        cycle = self._current()
        if cycle is None or cycle.response_complete:
            return None
        if not cycle.more_body:
            return cycle
        if not self.pipeline or self._answering is None:
            return None  # it is the one that is being answered
        self.pipeline.popleft()
        self.cycle = self.pipeline[0][0] if self.pipeline else self._answering
        return self.cycle
