"""Who counts as hung: what runs, accepts, and gives no answer for long."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.engines import keeper
from ops.engines.config import Member
from ops.engines.processes import Process, Running


def member(number: int, port: int = 1) -> Running:
    return Running(Member("mongo", number, port, Path()), Process(number, 0), 0)


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_listener_that_never_answers_is_mute(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_ANSWER", 0.05)
    assert keeper.is_mute(member(1, port))


def test_one_that_refuses_connections_is_starting_and_not_mute(port: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # taken, and nobody listens
        assert not keeper.is_mute(member(1, free.getsockname()[1]))


def test_only_long_unbroken_silence_of_the_same_process_is_a_hang() -> None:
    mute: set[int] = {1, 2}
    now = 100.0
    watch = keeper.Watch(lambda running: running.process.pid in mute, lambda: now)
    one, two = member(1), member(2)
    assert watch.hung([one, two]) == []
    now += 12.0
    mute.discard(2)
    assert watch.hung([one, two]) == [], "at the limit"
    mute.add(2)
    now += 0.1
    assert watch.hung([one, two]) == [one], "the other one has answered in between"
    now += 12.0
    assert watch.hung([]) == []
    assert watch.hung([two]) == [], "what was not looked at, as it was paused, begins anew"
