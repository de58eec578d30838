"""A way between two processes on which packets get lost, in one direction or both.

TCP sends again what was lost, so nothing is missing within a connection: it arrives late, once the way is free, even
where the sender has given up and gone meanwhile. That is what this does: what comes in is held, and let go afterwards.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress

from logging_proxy import LoggingProxy

_RESET = struct.pack("ii", 1, 0)


class LossyLink(LoggingProxy):
    """Passes bytes, until told otherwise."""

    def __init__(self, upstream: int) -> None:
        super().__init__(upstream)
        self.passed = 0
        """Bytes that came through, either way."""
        self._is_free = {True: threading.Event(), False: threading.Event()}
        """By whether the direction is that to the server."""
        self.heal()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lose(self, *, up: bool = True, down: bool = True) -> None:
        """From now on nothing comes through, ``up`` to the server or ``down`` from it; no connection ends."""
        for is_up, is_lost in ((True, up), (False, down)):
            if is_lost:
                self._is_free[is_up].clear()

    def heal(self) -> None:
        """The way is free; what was held arrives now."""
        for each in self._is_free.values():
            each.set()

    def reset(self) -> None:
        """Break every connection, in the middle of what it carries."""
        with self._lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.cut()

    def __exit__(self, *details: object) -> None:
        self.heal()
        super().__exit__(*details)

    def _pump(self, source: socket.socket, sink: socket.socket, *, log: bool = False) -> None:
        free = self._is_free[log]  # heads are logged on the way to the server, and only there
        with suppress(OSError):
            while received := source.recv(65_536):
                free.wait()
                sink.sendall(received)
                self.passed += len(received)
        free.wait()  # the end of a connection is a packet too
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
