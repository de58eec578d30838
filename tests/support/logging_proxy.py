"""A TCP proxy that writes down what requests come through, and can cut or hold connections. Knows nothing of events."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Head:
    """The head of one request."""

    method: str
    target: str
    headers: dict[str, str]


class LoggingProxy:
    """Listens on a free loopback port and passes bytes to ``upstream`` and back."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.heads: list[Head] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._passing = threading.Event()
        self._passing.set()
        self._closed = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._passing.set()
        self.cut()

    def gets(self, part: str) -> list[Head]:
        """GET requests whose target contains ``part``, in order of arrival."""
        return [head for head in self.heads if head.method == "GET" and part in head.target]

    def cut(self) -> None:
        """End all connections that are open now."""
        with self._lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Take new connections, but pass nothing on until `release`."""
        self._passing.clear()

    def release(self) -> None:
        self._passing.set()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._passing.wait()
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self._upstream), timeout=10)
            except OSError:
                return
            with server:
                server.settimeout(None)
                with self._lock:
                    self._open |= {client, server}
                back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
                back.start()
                self._pump(client, server, log=True)
                back.join()
                with self._lock:
                    self._open -= {client, server}

    def _pump(self, source: socket.socket, sink: socket.socket, *, log: bool = False) -> None:
        seen = b""
        with suppress(OSError):
            while received := source.recv(65_536):
                if log:
                    seen = self._log(seen + received)
                sink.sendall(received)
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _log(self, seen: bytes) -> bytes:
        """Write down complete heads; bodies are not expected on the way through (requests here are GETs)."""
        while b"\r\n\r\n" in seen:
            head, _, seen = seen.partition(b"\r\n\r\n")
            first, *fields = head.decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ", 2)
            pairs = (field.partition(":") for field in fields)
            self.heads.append(Head(method, target, {n.strip().lower(): v.strip() for n, _, v in pairs}))
        return seen
