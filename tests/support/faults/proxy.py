"""A TCP proxy that can be told to lose packets: what arrives is taken and thrown away, in one direction or both, and no
connection ends; to take nothing for a while; or to cut every connection in the middle of what it carries."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector

ROOM = 32 * 1024
"""Bytes that the kernel takes from the server while nothing is read: a server whose client stalls is to notice."""


class FaultProxy:
    """Listens on a free loopback port and forwards to one other. Runs in a thread of its own."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.drops_up = False
        """Lose what clients send."""
        self.drops_down = False
        """Lose what the server sends."""
        self.holds = False
        """Take nothing from either side."""
        self._stop = threading.Event()
        self._pairs: dict[socket.socket, tuple[socket.socket, bool]] = {}
        self._selector = DefaultSelector()
        self._selector.register(self._listener, EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="fault proxy", daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Reset every connection."""
        for sock in list(self._pairs):
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.is_set():
            if self.holds:
                self._stop.wait(0.05)
                continue
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._forward(key.fileobj)
        for sock in list(self._pairs):
            self._end(sock)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
        server.settimeout(1)
        try:
            server.connect(("127.0.0.1", self._target))
        except OSError:
            server.close()
            client.close()
            return
        for sock, other, is_up in ((client, server, True), (server, client, False)):
            sock.settimeout(5)
            self._pairs[sock] = (other, is_up)
            self._selector.register(sock, EVENT_READ)

    def _forward(self, sock: socket.socket) -> None:
        if sock not in self._pairs:
            return
        other, is_up = self._pairs[sock]
        try:
            received = sock.recv(65_536)
            if received and not (self.drops_up if is_up else self.drops_down):
                other.sendall(received)
        except OSError:
            received = b""
        if not received:
            self._end(sock)

    def _end(self, sock: socket.socket) -> None:
        entry = self._pairs.pop(sock, None)
        if entry is None:
            return
        self._pairs.pop(entry[0], None)
        for each in (sock, entry[0]):
            with suppress(KeyError, ValueError):
                self._selector.unregister(each)
            each.close()
