"""A connection between two owners: what the one has left in it is not the other's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hand_clock import HandClock

from gateway import ahead
from gateway.fast import FastConnection
from gateway.stalls import StallWatch


class FullTransport:
    """Takes everything, and asks for a pause with each write."""

    protocol: Any = None
    was_aborted = False
    is_empty = False

    def get_write_buffer_size(self) -> int:
        return 0 if self.is_empty else 1000

    def get_extra_info(self, _name: str) -> Any:
        """The socket."""
        return SimpleNamespace(fileno=lambda: -1, setsockopt=lambda *_: None)

    def abort(self) -> None:
        self.was_aborted = True

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None) -> None:
        """As a transport that is empty."""

    def pause_reading(self) -> None:
        """As one that reads."""

    def resume_reading(self) -> None:
        """As one that reads."""

    def close(self) -> None:
        """Once everything is written, so never."""

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


def connected(transport: FullTransport, origin: Lender, *, keep_alive: bool) -> tuple[FastConnection, StallWatch]:
    stalls = StallWatch(HandClock(), 30)
    context = SimpleNamespace(hub=SimpleNamespace(stalls=stalls, close=lambda *_: None))
    connection = FastConnection(cast("Any", context), cast("Any", transport), cast("Any", origin), keep_alive)
    connection._subscriber = cast("Any", SimpleNamespace(last=lambda blocks: blocks))
    return connection, stalls


def test_last_blocks_that_do_not_fit_leave_nobody_to_be_cut() -> None:
    transport, origin = FullTransport(), Lender()
    connection, stalls = connected(transport, origin, keep_alive=True)
    connection.finish(b"bye")
    assert origin.returned, "the next owner must know that the transport is full"
    assert not len(stalls), "a minute later it would be cut, in the middle of what the next owner does"


def test_a_finished_stream_and_its_subscriber_do_not_hold_each_other() -> None:
    connection, _ = connected(FullTransport(), Lender(), keep_alive=True)
    connection.finish(b"bye")
    assert connection._subscriber is None


async def test_half_closed_with_bytes_to_take_it_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.lingering.CLOSE_TIMEOUT", 0)
    transport = FullTransport()
    connection, stalls = connected(transport, Lender(), keep_alive=True)
    connection.pause_writing()
    assert len(stalls) == 1
    assert not connection.eof_received(), "the transport closes once everything is written"
    assert not len(stalls)
    while not transport.was_aborted:
        await asyncio.sleep(0)


@pytest.mark.parametrize("comes_first", ["the flood", "the pause"])
def test_who_sends_on_without_end_and_takes_nothing_is_cut(comes_first: str) -> None:
    transport = FullTransport()
    connection, stalls = connected(transport, Lender(), keep_alive=True)
    if comes_first == "the pause":
        connection.pause_writing()
    connection.data_received(b"x" * ahead.UNREAD)
    assert not transport.was_aborted
    connection.data_received(b"x")
    if comes_first == "the flood":
        assert not transport.was_aborted, "it may read everything"
        connection.pause_writing()
    assert transport.was_aborted
    assert not len(stalls)


async def test_an_end_that_has_come_needs_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.lingering.CLOSE_TIMEOUT", 0)
    for is_empty in (True, False):
        transport = FullTransport()
        transport.is_empty = is_empty
        connection, _ = connected(transport, Lender(), keep_alive=True)
        connection.eof_received()
        connection.connection_lost(None)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not transport.was_aborted
