"""Subscribers over plain sockets, who read when a test says so."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

from cdrs_process import wait_until
from sse_socket import Block, BodyReader, EventStreamParser
from threaded_server import ThreadedServer, metric


class Follower:
    """A connection that subscribed."""

    def __init__(
        self, port: int, stream: str, *lines: str, version: str = "1.1", query: str = "", room: int = 0
    ) -> None:
        """``room``: bytes that its kernel takes on its behalf; 0: as many as usual."""
        self.socket = socket.socket()
        if room:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", port))
        self.body = BodyReader()
        self.parser = EventStreamParser()
        self.blocks: list[Block] = []
        self.numbers: list[int] = []
        self.raw = bytearray()
        head = [f"GET /v1/streams/{stream}/events{query} HTTP/{version}", "Host: test", *lines]
        self.send("\r\n".join(head).encode() + b"\r\n\r\n")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def close(self) -> None:
        self.socket.close()

    def read(self, most: int = 65536) -> bool:
        """Take what comes next; False when the answer is complete or the connection has ended."""
        try:
            data = self.socket.recv(most)
        except ConnectionError:
            return False
        self.raw += data
        if not self.body.complete:
            blocks = self.parser.feed(self.body.feed(data))
            self.blocks += blocks
            self.numbers += [json.loads(block.data)["data"]["n"] for block in blocks if not block.is_control]
        return bool(data) and not self.body.complete

    def until(self, name: str) -> Follower:
        """Read to a control event."""
        open_still = True
        while not any(block.event == name.encode() for block in self.blocks):
            assert open_still, self.raw[-300:]
            open_still = self.read()
        return self

    def opened(self) -> Follower:
        self.until("cdrs.caught-up")
        assert self.body.status == 200
        return self

    @property
    def last_id(self) -> str:
        return self.blocks[-1].id.decode()

    def ended_by_server(self) -> bool:
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            pass
        return True


@contextmanager
def following(server: ThreadedServer, stream: str, *lines: str, **more: str) -> Iterator[Follower]:
    with closing(Follower(server.port, stream, *lines, **more)) as follower:
        yield follower


def all_gone(server: ThreadedServer) -> None:
    wait_until(lambda: metric(server, "cdrs_sse_connections ") == 0, 10, "all streams to be counted out")


def stalled(server: ThreadedServer, stream: str, room: int) -> Follower:
    """A follower that has read its first blocks, with so little room for what comes."""
    follower = Follower(server.port, stream)
    follower.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    return follower.opened()
