"""A client that only asks whether somebody is there."""

from __future__ import annotations

import socket
import threading


class Knocker:
    """Connects and lets go again, many times a second, and remembers what went wrong."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="knocker", daemon=True)
        self.connected = 0
        self.failures: list[OSError] = []

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=5).close()
                self.connected += 1
            except OSError as error:
                self.failures.append(error)

    def __enter__(self) -> Knocker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)
