"""A TCP proxy behind which a server takes its time: whatever it says comes late, in order and unharmed."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from logging_proxy import LoggingProxy


class SlowLink(LoggingProxy):
    """As fast as it can be, until told otherwise."""

    def __init__(self, upstream: int, delay: Callable[[], float]) -> None:
        """``delay``: in seconds, asked for at each piece that the server sends."""
        super().__init__(upstream)
        self._delay = delay
        self._fast = threading.Event()
        self._fast.set()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def slow(self) -> None:
        """From now on answers are late."""
        self._fast.clear()

    def fast(self) -> None:
        """No longer; what waits comes at once."""
        self._fast.set()

    def __exit__(self, *details: object) -> None:
        self.fast()
        super().__exit__(*details)

    def _pump(self, source: socket.socket, sink: socket.socket, *, log: bool = False) -> None:
        if log:
            super()._pump(source, sink, log=True)
            return
        late: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(source, late), daemon=True).start()
        with suppress(OSError):
            while (entry := late.get())[1]:
                self._fast.wait(max(entry[0] - time.monotonic(), 0))
                sink.sendall(entry[1])
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _read(self, source: socket.socket, late: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        with suppress(OSError):
            while received := source.recv(65_536):
                late.put((time.monotonic() + self._delay(), received))
        late.put((0, b""))

    def _log(self, seen: bytes) -> bytes:
        return b""
