"""Where the connections of event streams come from, and go back to: a server, as they see it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from gateway.sockets import ANSWER_SEND_BUFFER, bound_sending


class ServerState(Protocol):
    """Of uvicorn: what its server and its connections share."""

    connections: Any


class Origin:
    """A server that connections were taken from: it knows them, and takes them back when their stream has ended."""

    def __init__(
        self, make: Callable[..., asyncio.Protocol], config: object, server_state: ServerState, app_state: object
    ) -> None:
        self._make = make
        self._config = config
        self._state = server_state
        self._app_state = app_state

    def lend(self, connection: asyncio.Protocol) -> None:
        """The server waits for this connection when it ends. It must have uvicorn's ``shutdown()``."""
        self._state.connections.add(connection)

    def forget(self, connection: asyncio.Protocol) -> None:
        """It is closed, or comes back. Idempotent."""
        self._state.connections.discard(connection)

    def take_back(self, transport: asyncio.Transport, received: bytes, *, is_paused: bool) -> None:
        """The stream has ended and the client may send its next request; ``received`` is what it has sent already.
        ``is_paused``: the transport has asked for a pause in writing, and not yet taken it back."""
        protocol = self._make(self._config, self._state, self._app_state)
        bound_sending(transport, ANSWER_SEND_BUFFER)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if is_paused:
            protocol.pause_writing()
        transport.resume_reading()
        if received:
            protocol.data_received(received)
