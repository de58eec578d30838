"""Every process replaced, one after the other, under load and behind HAProxy: producers that never try twice get a
receipt for everything, and a stream is moved once by each gateway that goes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from cdrs_process import wait_until
from deployment import Deployment
from engine_place import own_place
from producers import OnceProducer, Producer
from sse_socket import Subscriber
from write_paths import each_path

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

OUT_WITHIN = 10.0
"""Seconds from the signal to the end of a process."""
STREAMS = 24
PRODUCERS = 3
ROUNDS = 1
ENV = {"CDRS_GATEWAY__DRAIN_DELAY": "2.5"}  # HAProxy's check interval x fall, and a little


class NamelessProducer(Producer):
    """Plain payloads without an id, each sent once. Neither it nor a balancer can send one again: it would be stored
    twice."""

    def step(self) -> None:
        self.event()
        path = f"/v1/streams/{self.ledger.stream}/events"
        response = self.post(path, self.ledger.sent[-1], {"content-type": "application/json"})
        if response is None:
            self.ledger.note("no answer")
            return
        text = response.read()
        self.ledger.note(f"status {response.status}")
        if response.status == 201:
            self.ledger.receipt(json.loads(text))


@each_path
@pytest.mark.parametrize("profile", ["embedded", "engines"])
def test_rolling_every_role_costs_producers_nothing_and_each_stream_one_reconnect(tmp_path: Path, profile: str) -> None:
    with ExitStack() as stack:
        env = stack.enter_context(own_place()).env if profile == "engines" else {}
        data = [] if env else ["--data", str(tmp_path / "data")]
        cdrs = stack.enter_context(Deployment(tmp_path / "cdrs", {**env, **ENV}, args=data))
        streams = [stack.enter_context(Subscriber(cdrs.port, "roll.>")) for _ in range(STREAMS)]
        once: list[Producer] = [OnceProducer(cdrs.port, f"roll.once{i}", pause=0.01) for i in range(PRODUCERS)]
        nameless: list[Producer] = [NamelessProducer(cdrs.port, f"roll.plain{i}", pause=0.01) for i in range(PRODUCERS)]
        for producer in [*once, *nameless]:
            stack.enter_context(producer)
        streams[0].wait_count(200, 20)
        for _ in range(ROUNDS):
            for index in range(len(cdrs.gateways)):
                roll(cdrs, streams, "gateway", index, moves=1)
            for index in range(len(cdrs.node_list)):
                roll(cdrs, streams, "node", index, moves=0)
        ledgers = [producer.finish() for producer in [*once, *nameless]]
        total = 0
        for ledger in ledgers:
            print(ledger.stream, len(ledger.sent), "sent:", ledger.answers)
            assert not ledger.contradictions, ledger.contradictions[:3]
            assert len(ledger.acknowledged) == len(ledger.sent), f"{ledger.stream}: {ledger.answers}"
            total += len(ledger.sent)
        for stream in streams:
            stream.wait_count(total, 30)
            assert len(stream.blocks) == total, "an event came twice"
            assert not [block for block in stream.controls if block.event == b"cdrs.gap"], stream.summary()
            assert stream.statuses == [200] * stream.connections
            assert set(stream.ends) <= {"clean"}, stream.summary()


def roll(cdrs: Deployment, streams: Sequence[Subscriber], role: str, index: int, *, moves: int) -> None:
    """Replace one process while the others serve; each stream is moved ``moves`` times at most."""
    before = [stream.connections for stream in streams]
    leaving = (cdrs.gateways if role == "gateway" else cdrs.node_list)[index]
    started = time.monotonic()
    if role == "gateway":
        cdrs.replace_gateway(index)
    else:
        cdrs.replace_node(index)
    took = ended(leaving.folder, started)
    moved = [now.connections - then for now, then in zip(streams, before, strict=True)]
    print(f"{role} {index}: out after {took:.2f} s, {sum(moved)} streams moved")
    assert took <= OUT_WITHIN
    assert max(moved) <= moves, moved
    for stream in streams:
        seen = len(stream.blocks)
        wait_until(lambda s=stream, n=seen: len(s.blocks) > n + 20, 20, "the events to go on")


def ended(folder: Path, started: float) -> float:
    """Seconds until it had ended, by its last word."""
    return max((folder / "stderr.txt").stat().st_mtime - (time.time() - (time.monotonic() - started)), 0.0)
