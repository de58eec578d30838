"""What a process says of itself: turns of its loop, descriptors, disk; and which of its tasks fail."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cdrs.replicas import replicas_trouble
from cdrs.tasks import Supervisor
from shared.clock import SystemClock
from shared.errors import Unavailable
from shared.health import Checks
from shared.offers import Replicas
from shared.telemetry import Telemetry
from shared.vitals import LITTLE_ROOM, LONG_TURN, REMEMBERED, TICK, Vitals


class Hand:
    """A clock that is set by hand."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def unix_ms(self) -> int:
        return 0


def found(vitals: Vitals) -> dict[str, bool]:
    checks = Checks(Hand())
    vitals.tell(checks)
    return {name: check.ok for name, check in checks.found.items()}


def value(telemetry: Telemetry, name: str) -> float | None:
    families = text_string_to_metric_families(telemetry.render()[0].decode())
    return next((sample.value for family in families for sample in family.samples if sample.name == name), None)


def test_the_worst_delay_is_shown_for_a_while() -> None:
    clock = Hand()
    vitals = Vitals(clock)
    for delay in (0.3, 0.1, 0.2, 0.05):
        vitals.late(delay)
        clock.now += 1.0
    assert vitals.delay == 0.3
    clock.now += REMEMBERED - 3.5
    assert vitals.delay == 0.2
    clock.now += REMEMBERED
    assert vitals.delay == 0.0


def test_a_loop_that_stands_still_is_told() -> None:
    vitals = Vitals(Hand())
    assert found(vitals)["loop"]
    vitals.late(LONG_TURN + 0.1)
    assert not found(vitals)["loop"]


async def test_a_real_loop_that_is_blocked_is_seen() -> None:
    vitals = Vitals(SystemClock())
    looking = asyncio.create_task(vitals.run())
    await asyncio.sleep(0)
    blocked = 0.6
    time.sleep(blocked)
    async with asyncio.timeout(5):
        while (
            vitals.delay < blocked - 1.25 * TICK or not vitals.open
        ):  # it may have been asleep rightly for a tick first
            await asyncio.sleep(0.01)
    looking.cancel()
    assert vitals.open > 3


def test_a_disk_that_is_nearly_full_is_told(tmp_path: Path) -> None:
    room = LITTLE_ROOM
    vitals, telemetry = Vitals(SystemClock(), folder=tmp_path, free=lambda _: room), Telemetry(version="1")
    for room, fine in ((LITTLE_ROOM, True), (LITTLE_ROOM - 1, False)):
        vitals.look()
        assert found(vitals)["disk"] is fine
        vitals.export(telemetry)
        assert value(telemetry, "cdrs_disk_free_bytes") == room


def test_nothing_is_said_of_a_disk_that_is_not_used() -> None:
    vitals, telemetry = Vitals(SystemClock(), descriptors=lambda: 10**9), Telemetry(version="1")
    vitals.look()
    assert found(vitals) == {"loop": True, "descriptors": False}
    vitals.export(telemetry)
    assert value(telemetry, "cdrs_disk_free_bytes") is None


def test_no_descriptor_left_to_count_them_with_is_told_and_ends_nothing() -> None:
    def none_left() -> int:
        raise OSError(24, "Too many open files")

    vitals = Vitals(SystemClock(), descriptors=none_left)
    vitals.look()
    assert not found(vitals)["descriptors"]


async def test_a_task_that_fails_is_started_again_counted_and_told() -> None:
    clock, telemetry = Hand(), Telemetry(version="1")
    supervisor = Supervisor(clock, telemetry)
    ends: list[BaseException] = [ValueError("a bug"), Unavailable("not there"), KeyError("another")]
    went_on = asyncio.Event()

    async def work() -> None:
        if ends:
            raise ends.pop(0)
        went_on.set()
        await asyncio.sleep(60)

    running = asyncio.create_task(supervisor.run("tail", work))
    async with asyncio.timeout(5):
        await went_on.wait()
    running.cancel()
    assert value(telemetry, "cdrs_task_failures_total") == 2
    assert "tail failed (KeyError)" in supervisor.trouble
    clock.now += 11.0
    assert supervisor.trouble == ""


@pytest.mark.parametrize(
    ("replicas", "told"),
    [
        ({}, ""),
        ({0: Replicas(frozenset({1, 2, 3}), frozenset({1, 2, 3}))}, ""),
        (
            {p: Replicas(frozenset({1, 2, 3}), frozenset({1, 3}) if p else frozenset({1})) for p in (1, 0)},
            "broker 2 is not in sync for partitions 0, 1; broker 3 is not in sync for partitions 0",
        ),
        (
            {p: Replicas(frozenset({1, 2}), frozenset({1})) for p in range(14)},
            "broker 2 is not in sync for partitions 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more",
        ),
    ],
)
def test_copies_that_are_behind_are_named(replicas: dict[int, Replicas], told: str) -> None:
    assert replicas_trouble(replicas) == told
