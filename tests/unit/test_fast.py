"""A connection between two owners: what the one has left in it is not the other's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from gateway.fast import FastConnection
from gateway.stalls import Stallable


class FullTransport:
    """Takes everything, and asks for a pause with each write."""

    protocol: Any = None

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None) -> None:
        """As a transport that is empty."""

    def resume_reading(self) -> None:
        """As one that reads."""

    def is_closing(self) -> bool:
        return False

    def write(self, _data: bytes) -> None:
        self.protocol.pause_writing()


class Lender:
    """Where the connection comes from."""

    returned: bool | None = None
    """Whether it was paused when it came back."""

    def lend(self, _connection: Any) -> None: ...
    def forget(self, _connection: Any) -> None: ...

    def take_back(self, _transport: Any, _received: bytes, *, is_paused: bool) -> None:
        self.returned = is_paused


def test_last_blocks_that_do_not_fit_leave_nobody_to_be_cut() -> None:
    stalls: set[Stallable] = set()
    context = SimpleNamespace(hub=SimpleNamespace(stalls=stalls))
    transport, origin = FullTransport(), Lender()
    connection = FastConnection(cast("Any", context), cast("Any", transport), cast("Any", origin), keep_alive=True)
    connection._subscriber = cast("Any", SimpleNamespace(last=lambda blocks: blocks))
    connection.finish(b"bye")
    assert origin.returned, "the next owner must know that the transport is full"
    assert not stalls, "a minute later it would be cut, in the middle of what the next owner does"
