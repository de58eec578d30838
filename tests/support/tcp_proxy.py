"""A TCP proxy for any protocol, behind which a server can seem away: gone at once, or silent."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from logging_proxy import LoggingProxy


class TcpProxy(LoggingProxy):
    """Passes bytes, until told otherwise."""

    def __init__(self, upstream: int) -> None:
        super().__init__(upstream)
        self._away = threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def leave(self) -> None:
        """End all connections, and every new one at once."""
        self._away.set()
        self.cut()

    def come_back(self) -> None:
        self._away.clear()

    def _serve(self, client: socket.socket) -> None:
        if self._away.is_set():
            with suppress(OSError):
                client.close()
            return
        super()._serve(client)
        if self._away.is_set():
            self.cut()

    def _log(self, seen: bytes) -> bytes:
        return b""
