"""A TCP link that is slow towards the server, until it is released: what makes a short job last as long as the faults
in it need, with load all the time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

_PIECE = 16 * 1024


class PacedLink:
    """Listens on ``port`` and passes each connection on to another port of this machine."""

    def __init__(self, target: int, rate: Callable[[], float], *, again: float) -> None:
        """``rate``: bytes a second, asked for again and again. ``again``: the same for as many bytes of a connection as
        the one before it has carried: when that broke, they are sent once more, maybe before its end has come here."""
        self._target = target
        self._rate = rate
        self._again = again
        self._carried = [0]
        """What each connection has carried, one after the other."""
        self._released = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, name="paced link", daemon=True).start()

    def release(self) -> None:
        """From now on everything goes as fast as it can."""
        self._released.set()

    def close(self) -> None:
        self.release()
        self._listener.close()
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> PacedLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                # Little may wait in the kernel: what was let through must be on its way.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * _PIECE)
                self._open += [client, server]
                self._carried.append(0)
                number = len(self._carried) - 1
                for source, sink, which in ((client, server, number), (server, client, None)):
                    threading.Thread(target=self._carry, args=(source, sink, which), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, number: int | None) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                sink.sendall(piece)
                if number is not None:  # towards the server
                    self._pace(number, len(piece))
        for each, how in ((source, socket.SHUT_RD), (sink, socket.SHUT_WR)):
            with suppress(OSError):
                each.shutdown(how)

    def _pace(self, number: int, size: int) -> None:
        self._carried[number] += size
        if not self._released.is_set():
            is_again = self._carried[number] <= self._carried[number - 1]
            self._released.wait(size / (self._again if is_again else self._rate()))
