"""A store that is away is asked no more until it answers again; the index decides alone, and says so."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from model_log import ModelLog, ModelStore, event, events
from node_world import RING, TIMEOUT, WINDOW, running, until

from cdrs.node import Node
from shared.clock import SystemClock
from shared.errors import IdempotencyMismatch, Unavailable
from shared.records import Duplicate, FeedBatch, NewEvent
from shared.settings import DedupeSettings, NodeSettings, Settings
from shared.telemetry import Telemetry


@dataclass
class Absent(ModelStore):
    """A store that can go away."""

    away: bool = False
    asked: int = 0
    seen: set[str] = field(default_factory=set)

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            self.asked += 1
            raise Unavailable("nobody there")

    async def checkpoints(self) -> Mapping[int, int]:
        await self._answer()
        return await super().checkpoints()

    async def persist(self, *batches: FeedBatch) -> None:
        await self._answer()

    async def lookup(self, partition: int, events: Sequence[NewEvent]) -> Mapping[bytes, Duplicate]:
        await self._answer()
        return await super().lookup(partition, events)

    async def admit(self, spreads: Mapping[str, int]) -> None:
        if not spreads.keys() <= self.seen:
            await self._answer()
        self.seen |= spreads.keys()


def node_over(log: ModelLog, store: Absent, *, strict: bool = False) -> tuple[Node, Telemetry]:
    settings = Settings(node=NodeSettings(ring_records=RING, window=WINDOW), dedupe=DedupeSettings(strict=strict))
    telemetry = Telemetry(version="1")
    node = Node(log, store, settings, SystemClock(), node_id="n", incarnation="i", telemetry=telemetry)
    return node, telemetry


async def filled(node: Node, log: ModelLog) -> None:
    """The log is longer than what the index keeps, so the store has to be asked."""
    for number in range(3 * WINDOW):
        log.write(0, event(f"old {number}"), base=number)
    await until(lambda: not node._tail.judges[0].is_complete)


def degraded(telemetry: Telemetry) -> bool:
    return b"cdrs_dedupe_degraded 1.0" in telemetry.render()[0]


async def test_without_the_store_the_index_decides_and_says_so() -> None:
    log = ModelLog(decides_identity=False, window=WINDOW)
    store = Absent(log)
    node, telemetry = node_over(log, store)
    async with running(node.run):
        assert await node.ready(TIMEOUT)
        await filled(node, log)
        (first,) = await node.append(log.epoch, 0, [event("a")], timeout=TIMEOUT)
        assert not first.window_only
        store.away = True
        fresh, looked_up, copy, other = await node.append(
            log.epoch,
            0,
            [event("new", fresh=True), event("b"), event("a"), event("a", data=b"2")],
            timeout=TIMEOUT,
        )
        assert (fresh.window_only, looked_up.window_only) == (False, True)
        assert (copy.offset, copy.duplicate, copy.window_only) == (first.offset, True, False)
        assert other.problem == IdempotencyMismatch.problem
        assert degraded(telemetry)
        assert "nobody there" in (await node.info()).troubles["dedupe"]
        # Once it is known to be away, only the probe asks.
        asked = store.asked
        for number in range(50):
            (settled,) = await node.append(log.epoch, 0, [event(number)], timeout=TIMEOUT)
            assert settled.window_only
        assert store.asked - asked < 25
        store.away = False
        await until(lambda: not node.troubles)
        (settled,) = await node.append(log.epoch, 0, [event("c")], timeout=TIMEOUT)
        assert not settled.window_only
        assert not degraded(telemetry)
        assert not (await node.info()).troubles


async def test_a_stream_that_nobody_has_seen_is_not_made_without_the_store() -> None:
    log = ModelLog(decides_identity=False, window=WINDOW)
    store = Absent(log)
    node, _ = node_over(log, store)
    async with running(node.run):
        assert await node.ready(TIMEOUT)
        await filled(node, log)
        # Another node has admitted this stream; this one has read of it.
        log.write(0, event("x", stream="seen"), base=len(log.records[0]))
        await until(lambda: node._tail.rings[0].has_stream("seen"))
        store.away = True
        (settled,) = await node.append(log.epoch, 0, [event("y", stream="seen")], timeout=TIMEOUT)
        assert settled.window_only
        with pytest.raises(Unavailable):
            await node.append(log.epoch, 0, [event("y", stream="unheard")], timeout=TIMEOUT)
    assert [record.stream for record in log.records[0]][-2:] == ["seen", "seen"]


async def test_strict_refuses() -> None:
    log = ModelLog(decides_identity=False, window=WINDOW)
    store = Absent(log)
    node, _ = node_over(log, store, strict=True)
    async with running(node.run):
        assert await node.ready(TIMEOUT)
        await filled(node, log)
        await node.append(log.epoch, 0, events([1]), timeout=TIMEOUT)
        store.away = True
        with pytest.raises(Unavailable):
            await node.append(log.epoch, 0, events([2]), timeout=TIMEOUT)
        assert len(log.records[0]) == 3 * WINDOW + 1
        store.away = False
        await until(lambda: not node.troubles)
        (settled,) = await node.append(log.epoch, 0, events([2]), timeout=TIMEOUT)
        assert not settled.window_only
