"""What a process needs and how the others do: since when, how long it took to find out, and what is said of it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import pytest
from hand_clock import HandClock

from shared import health
from shared.detector import NodeState
from shared.health import Checks, keep_looking
from shared.member_states import StateTimes


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_what_becomes_amiss_is_said_and_how_long_it_was(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = HandClock()
    checks = Checks(clock)
    checks.set("log", trouble="not reached yet", fine="answers")
    checks.looked()
    checks.set("log", trouble="", fine="answers")
    checks.looked()
    assert not said(caplog), "what lacks before the start is no news"
    since = checks.found["log"].since
    clock.now += 5
    checks.set("log", trouble="away", fine="answers")
    checks.set("log", trouble="still away", fine="answers")
    assert checks.found["log"].since > since
    clock.now += 3.2
    checks.set("log", trouble="", fine="answers")
    assert said(caplog) == ["log: away", "log: answers again, after 3.2 s"]
    checks.set("persist", trouble="too far behind", fine="as it should be")
    assert said(caplog)[-1] == "persist: too far behind", "also where it was never looked at before"


async def test_a_look_that_fails_is_said_and_not_the_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(health, "LOOK_EVERY", 0.0)
    looks = 0
    enough = asyncio.Event()

    async def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise RuntimeError("a defect")
        enough.set()

    task = asyncio.create_task(keep_looking(look))
    async with asyncio.timeout(10):
        await enough.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert said(caplog) == ["the process could not look at what it needs"]


def test_each_state_has_its_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = HandClock()
    times = StateTimes(clock)
    heard = clock.monotonic()
    assert times.changed("n/1", None, NodeState.LIVE, heard) == 0
    clock.now += 1.5
    assert times.changed("n/1", NodeState.LIVE, NodeState.SUSPECT, heard) == pytest.approx(1.5)
    clock.now += 1.0
    assert times.changed("n/1", NodeState.SUSPECT, NodeState.DEAD, heard) == pytest.approx(2.5)
    assert times.of("n/1").took_ms == 2500
    clock.now += 4.0
    assert times.changed("n/1", NodeState.DEAD, NodeState.LIVE, clock.monotonic()) == pytest.approx(6.5)
    assert (times.of("n/1").took_ms, times.of("n/1").since_ms) == (6500, clock.unix_ms())
    times.left("n/1")
    times.left("n/1")
    assert said(caplog) == [
        "n/1 is live, was unknown; heard just now",
        "n/1 is suspect, was live; last heard 1500 ms ago",
        "n/1 is dead, was suspect; last heard 2500 ms ago",
        "n/1 is live, was dead; 6500 ms after it was last heard",
        "n/1 has left",
    ]
