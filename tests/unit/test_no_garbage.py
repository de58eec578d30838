"""What has been settled is gone at once, and does not wait for the collector, which would stop everything else."""

from __future__ import annotations

import gc

import pytest
from gateway_rig import Rig
from model_nodes import ModelNode, event

from cdrs.deciding import DecidingLane
from cdrs.lane import Answer, Waiting
from shared.records import Record


@pytest.mark.parametrize("together", [False, True])
async def test_a_settled_submission_leaves_no_circle(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelNode, "is_direct", True)
    monkeypatch.setattr(ModelNode, "commits_together", together)
    rig = Rig()
    async with rig.running():
        await rig.dispatcher.submit([(0, event("first")), (1, event("second"))], timeout=20).wait()
        gc.collect()
        gc.disable()
        try:
            await rig.dispatcher.submit([(0, event("1")), (1, event("2"))], timeout=20).wait()
            await rig.dispatcher.submit_run(0, [event("3"), event("4")], timeout=20).wait()
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            assert [kind for kind in map(type, gc.garbage) if kind.__module__.startswith(("gateway", "cdrs"))] == []
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()


def test_an_answered_batch_leaves_no_circle() -> None:
    lane = DecidingLane(0, lambda _: None, lambda _: None)
    gc.collect()
    gc.disable()
    try:
        answers: list[Answer] = []
        new = event("1")
        lane.put(Waiting(0, [new], 1, 0.0, answers.append, lambda handoff, outcome: handoff.answered(outcome)))
        lane.begin()
        lane.observe([Record(0, 7, 1, new.identity, new.stream, None, new.value, 0, 0, 1)], None)
        lane.appended([None])
        assert len(answers) == 1
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert [kind for kind in map(type, gc.garbage) if kind.__module__.startswith("cdrs")] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
