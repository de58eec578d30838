"""Dead letters: what they hold, that they are bounded, and that they never breed."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from contextlib import suppress

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cdrs.dead_letters import MAX_BYTES, PIECE, STREAM, DeadLetters, letter_of
from shared.clock import SystemClock
from shared.errors import InvalidRequest, Unavailable
from shared.events import attributes_of
from shared.position import Epoch
from shared.records import ForeignRecord, NewEvent, Settlement
from shared.telemetry import Telemetry

EPOCH = Epoch.parse("3-0000beef")


class Clock(SystemClock):
    """Stands still unless told."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Log:
    """Takes handoffs, or says why not."""

    def __init__(self) -> None:
        self.events: list[NewEvent] = []
        self.sizes: list[int] = []
        self.errors: list[Exception] = []

    async def append(self, epoch: Epoch, partition: int, events: Sequence[NewEvent]) -> Sequence[Settlement]:
        assert epoch == EPOCH
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        known = {event.identity for event in self.events}
        self.sizes.append(len(events))
        self.events += [event for event in events if event.identity not in known]
        return [Settlement(partition, 0, 0, duplicate=event.identity in known) for event in events]


def letters(log: Log, clock: Clock, *, rate: int = 50, preferred: bool = True) -> tuple[DeadLetters, Telemetry]:
    telemetry = Telemetry(version="1")
    made = DeadLetters(EPOCH, 3, log.append, clock, rate=rate, preferred=lambda _: preferred, telemetry=telemetry)
    return made, telemetry


def counts(telemetry: Telemetry, metric: str) -> dict[str, float]:
    body, _ = telemetry.render()
    return {
        next(iter(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == metric and sample.value
    }


async def written(made: DeadLetters, *, turns: int = 200) -> None:
    """Let it run for a while; its clock stands still."""
    task = asyncio.ensure_future(made.run())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def foreign(offset: int, raw: bytes = b"hello", cause: str = "no-header") -> ForeignRecord:
    return ForeignRecord(1, offset, cause, raw)


@pytest.mark.parametrize("raw", [b"", b"\xff\x00not text", b"x" * (MAX_BYTES + 1)])
def test_a_letter_holds_the_bytes_and_the_cause(raw: bytes) -> None:
    event = letter_of(foreign(17, raw, "not-utf8"), EPOCH, 5)
    value = orjson.loads(event.value)
    assert base64.b64decode(value.pop("data_base64")) == raw[:MAX_BYTES]
    assert value == {
        "specversion": "1.0",
        "id": "3-0000beef-1-17",
        "source": "/cdrs/log",
        "type": "cdrs.dead-letter",
        "cdrscause": "not-utf8",
        "cdrssize": len(raw),
        "cdrsstream": "cdrs.dead.log",
    }
    assert attributes_of(event)["id"] == "3-0000beef-1-17"
    assert event.value[event.data_at :].startswith(b'"')
    later = letter_of(foreign(17, raw, "not-utf8"), EPOCH, 6)
    assert (event.value, event.identity) == (later.value, later.identity)
    assert event.identity != letter_of(foreign(18, raw), EPOCH, 5).identity


async def test_each_record_gets_one_letter_however_often_it_is_met() -> None:
    log, clock = Log(), Clock()
    made, telemetry = letters(log, clock)
    for _ in range(3):
        for offset in range(120):
            made.take(foreign(offset))
    await written(made)
    assert [orjson.loads(event.value)["id"] for event in log.events] == [f"3-0000beef-1-{n}" for n in range(120)]
    assert max(log.sizes) <= PIECE
    assert {event.stream for event in log.events} == {STREAM}
    assert counts(telemetry, "cdrs_log_foreign_records_total") == {"no-header": 360}
    assert counts(telemetry, "cdrs_dead_letters_total") == {"stored": 120, "known": 240}


async def test_a_flood_is_counted_and_not_written() -> None:
    log, clock = Log(), Clock()
    made, telemetry = letters(log, clock, rate=10)
    for offset in range(100_000):
        made.take(foreign(offset))
    await written(made)
    assert len(log.events) == 100
    assert counts(telemetry, "cdrs_log_foreign_records_total") == {"no-header": 100_000}
    assert counts(telemetry, "cdrs_dead_letters_total") == {"stored": 100, "dropped": 99_900}
    clock.now += 2
    for offset in range(100_000, 100_050):
        made.take(foreign(offset))
    await written(made)
    assert len(log.events) == 120


async def test_large_records_count_for_what_they_weigh() -> None:
    log, clock = Log(), Clock()
    made, _ = letters(log, clock, rate=1)
    for offset in range(10):
        made.take(foreign(offset, b"x" * 200_000))
    await written(made)
    assert len(log.events) == 2


async def test_what_waits_for_a_log_that_is_away_is_bounded() -> None:
    log, clock = Log(), Clock()
    made, telemetry = letters(log, clock, rate=100_000)
    log.errors = [Unavailable("away")] * 1000
    for offset in range(100):
        made.take(foreign(offset, b"x" * 500_000))
    await written(made)
    assert not log.events
    dropped = counts(telemetry, "cdrs_dead_letters_total")["dropped"]
    assert 70 < dropped < 80  # 16 MiB of base64 wait
    log.errors.clear()
    await written(made)
    assert len(log.events) == 100 - dropped
    for offset in range(2000):
        made.take(foreign(offset))
    assert counts(telemetry, "cdrs_dead_letters_total")["dropped"] == dropped + 1000


async def test_a_node_that_does_not_come_first_waits() -> None:
    log, clock = Log(), Clock()
    made, _ = letters(log, clock, preferred=False)
    made.take(foreign(1))
    await written(made)
    assert not log.events
    clock.now += 3.1
    await written(made)
    assert len(log.events) == 1


async def test_letters_do_not_breed() -> None:
    log, clock = Log(), Clock()
    made, telemetry = letters(log, clock)
    copy = letter_of(foreign(1), EPOCH, 5).value
    made.take(foreign(2, copy))
    await written(made)
    assert not log.events
    assert counts(telemetry, "cdrs_log_foreign_records_total") == {"no-header": 1}


async def test_a_refused_letter_is_given_up() -> None:
    log, clock = Log(), Clock()
    made, telemetry = letters(log, clock)
    log.errors = [InvalidRequest("no")]
    made.take(foreign(1))
    await written(made)
    made.take(foreign(2))
    await written(made)
    assert [orjson.loads(event.value)["id"] for event in log.events] == ["3-0000beef-1-2"]
    assert counts(telemetry, "cdrs_dead_letters_total") == {"refused": 1, "stored": 1}
