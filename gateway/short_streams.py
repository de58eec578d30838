"""The short way of a subscription: from the head of a request to its place in a view, beneath ASGI.

When a gateway has died, its subscribers come back at once; what one of them costs is then mostly its request. What is
served here is ``GET`` of an event stream whose start lies within the gateway's memory. Anything else, and whatever is
not known at once, is declined before anything was done, and goes through the application. Validation, placing and the
answer are the application's own functions.

The parser reads every head. What the application makes of a target and of the two fields that say what is wanted is
kept under them, so it is made once, however often it comes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from starlette.requests import Request

from gateway.asked import Asked, read_asked
from gateway.event_stream import head_fields
from gateway.negotiation import prefers_json
from gateway.sockets import bound_socket
from gateway.subscribe import Subscription
from shared.errors import CdrsError

if TYPE_CHECKING:
    import asyncio

    from gateway.context import GatewayContext
    from gateway.protocol import Detached
    from gateway.turnstile import Turnstile

KEPT = 1024
"""Wishes that are kept."""
MAX_KEY = 1024
"""Longest target with its fields that is kept, in bytes."""
MAX_PATTERNS = 8
"""Most streams and patterns of what is kept."""

Headers = list[tuple[bytes, bytes]]

_TARGET = re.compile(rb"(/v1/(?:streams/([A-Za-z0-9_.-]{1,200})/)?events)(?:\?([!-~]*))?")
_UNUSUAL = frozenset(
    {b"origin", b"upgrade", b"content-length", b"transfer-encoding", b"expect", b"te", b"http2-settings"}
)
"""Fields with which a request is the application's: of other sites, or with a body."""
_WISHES = frozenset({b"accept", b"accept-encoding"})


class Connection(Protocol):
    """Who asks, and is given away with its answer. Nothing else is under way on it."""

    @property
    def transport(self) -> asyncio.Transport:
        """Its bytes."""
        ...

    @property
    def default_headers(self) -> Headers:
        """Fields of every answer, as the server has them now."""
        ...

    @property
    def peer(self) -> str:
        """The client's address."""
        ...

    def detach(self, *, keep_alive: bool | None = None) -> Detached:
        """See `gateway.protocol.CdrsHttpProtocol.detach`."""
        ...


@dataclass(frozen=True, slots=True)
class Visit:
    """A request that may be served here."""

    asked: Asked
    cursor_text: str | None
    keep_alive: bool


class StreamShortcut:
    """The short way to one gateway's event streams; shared by its connections."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._known: dict[tuple[bytes, ...], Asked] = {}
        """Target and wishes → what they ask for."""
        self._heads: dict[tuple[bool, bool], bytes] = {}
        """(gzip, keep-alive) → the head of the answer; renewed with the server's fields."""
        self._head_of: Headers = []

    @property
    def turnstile(self) -> Turnstile:
        """Where subscriptions wait for their turn."""
        return self._context.turnstile

    def visit(self, method: bytes, target: bytes, headers: Headers, *, keep_alive: bool) -> Visit | None:
        """What a request without a body asks for, as the parser has read it (names in lower case); None where it is
        nothing for us."""
        if method != b"GET":
            return None
        key = [target]
        last_id: bytes | None = None
        for name, value in headers:
            if name == b"last-event-id":
                last_id = value if last_id is None else last_id
            elif name in _WISHES:
                key += (name, value)
            elif name in _UNUSUAL:
                return None
        wishes = tuple(key)
        asked = self._known.get(wishes) or self._learn(wishes, headers)
        if asked is None:
            return None
        return Visit(asked, last_id.decode("latin-1") if last_id else asked.cursor, keep_alive)

    def begin(self, connection: Connection, visit: Visit) -> bool:
        """Give a request its stream, and the connection to the hub; False, and nothing was done, where the application
        has to see."""
        context = self._context
        subscription = Subscription(context, visit.asked, visit.cursor_text, remote=connection.peer)
        if not subscription.prepare_now():
            return False
        bound_socket(connection.transport, context.settings.sse.stall_timeout)
        head = self._head(connection.default_headers, subscription.is_gzip, visit.keep_alive)
        subscription.hand_over(connection.detach(keep_alive=visit.keep_alive), head=head)
        return True

    def _head(self, default: Headers, gzip: bool, keep_alive: bool) -> bytes:
        """The head of the answer, as the server makes it."""
        if default is not self._head_of:
            self._head_of = default
            self._heads.clear()
        head = self._heads.get((gzip, keep_alive))
        if head is None:
            fields = [b"%b: %b\r\n" % (name.lower(), value) for name, value in (*default, *head_fields(gzip=gzip))]
            end = b"transfer-encoding: chunked\r\n\r\n"
            head = b"".join([b"HTTP/1.1 200 OK\r\n", *fields, b"" if keep_alive else b"connection: close\r\n", end])
            self._heads[gzip, keep_alive] = head
        return head

    def _learn(self, wishes: tuple[bytes, ...], headers: Headers) -> Asked | None:
        asked = self._read(wishes[0], headers)
        if asked is not None and len(asked.patterns) <= MAX_PATTERNS and sum(map(len, wishes)) <= MAX_KEY:
            if len(self._known) >= KEPT:
                del self._known[next(iter(self._known))]
            self._known[wishes] = asked
        return asked

    def _read(self, target: bytes, headers: Headers) -> Asked | None:
        match = _TARGET.fullmatch(target)
        if match is None:
            return None
        path, stream, query = match.groups()
        request = Request({
            "type": "http", "method": "GET", "path": path.decode("ascii"), "query_string": query or b"",
            "headers": headers, "path_params": {} if stream is None else {"stream": stream.decode("ascii")},
        })  # fmt: skip
        try:
            return (
                None
                if prefers_json(request, event_stream_default=True)
                else read_asked(request, self._context.settings)
            )
        except CdrsError:
            return None
