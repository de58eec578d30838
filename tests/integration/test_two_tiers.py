"""A node whose log and store are two things: streams are admitted before they are written to, and a store that is too
far behind stops the writing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from model_log import ModelLog, ModelStore, event, events
from node_world import TIMEOUT, running_node

from shared.errors import OutcomeUnknown, Overloaded, StaleStream, Unavailable


@dataclass
class WatchedStore(ModelStore):
    """Notes how much the log held when streams were admitted."""

    admitted: list[tuple[dict[str, int], int]] = field(default_factory=list)
    refusal: Exception | None = None

    async def admit(self, spreads: Mapping[str, int]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.admitted.append((dict(spreads), len(self.log.records.get(0, ()))))

    async def starts(self) -> Mapping[int, int]:
        return {0: 7}


async def test_streams_are_admitted_before_their_first_event_is_in_the_log() -> None:
    log = ModelLog(decides_identity=False)
    store = WatchedStore(log)
    async with running_node(log, store) as node:
        await node.append(log.epoch, 0, [*events(range(3)), event(9, stream="other")], timeout=TIMEOUT)
        assert await node.starts() == {0: 7}
    assert store.admitted == [({"orders": 1, "other": 1}, 0)]


@pytest.mark.parametrize(
    ("refusal", "heard"),
    [
        (StaleStream("spread"), StaleStream),
        (OutcomeUnknown("no answer"), Unavailable),
        (Unavailable("away"), Unavailable),
    ],
)
async def test_nothing_is_written_where_the_store_does_not_admit(refusal: Exception, heard: type[Exception]) -> None:
    log = ModelLog(decides_identity=False)
    async with running_node(log, WatchedStore(log, refusal=refusal)) as node:
        with pytest.raises(heard):
            await node.append(log.epoch, 0, events([1]), timeout=TIMEOUT)
    assert not log.records.get(0)


async def test_a_partition_whose_store_is_too_far_behind_takes_no_more() -> None:
    log = ModelLog(decides_identity=False)
    async with running_node(log, WatchedStore(log)) as node:
        node._ingest.refuses = lambda partition: partition == 0
        with pytest.raises(Overloaded):
            await node.append(log.epoch, 0, events([1]), timeout=TIMEOUT)
        await node.append(log.epoch, 1, events([2]), timeout=TIMEOUT)
