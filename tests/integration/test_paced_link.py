"""The slow link of the jobs: what is sent once more goes as fast as it may, however slow the link has become."""

from __future__ import annotations

import socket

from paced_link import PacedLink

PIECE = 16 * 1024
MUCH = 8 * PIECE
FAST = 1e9
STANDS = 0.001
"""Bytes a second."""


def take(connection: socket.socket, size: int) -> None:
    while size:
        taken = len(connection.recv(size))
        assert taken, "it has ended"
        size -= taken


def test_what_a_connection_had_carried_goes_again_at_once_while_that_one_still_stands() -> None:
    rate = FAST
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        PacedLink(server.getsockname()[1], lambda: rate, again=FAST) as link,
    ):
        server.settimeout(10)
        with socket.create_connection(("127.0.0.1", link.port)) as first:
            first.sendall(b"x" * MUCH)
            behind = server.accept()[0]
            behind.settimeout(10)
            take(behind, MUCH)
            rate = STANDS
            first.sendall(b"x")  # behind which it stands, if not before
        with socket.create_connection(("127.0.0.1", link.port)) as second:
            second.sendall(b"x" * MUCH)
            after = server.accept()[0]
            after.settimeout(10)
            take(after, MUCH)
        behind.close()
        after.close()
