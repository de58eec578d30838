"""A full disk, and event loops that stand still for long: what is refused is refused early and honestly, reading goes
on, and everything heals by itself."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from cdrs_process import ROOT, CdrsProcess, wait_until
from engine_place import own_place
from producers import OnceProducer
from small_disk import fill, small_disk
from sse_socket import Subscriber
from write_paths import each_path

STALL = 15.0


@each_path
@pytest.mark.parametrize(
    "args", [[], pytest.param(["--nodes", "2"], marks=pytest.mark.slow)], ids=["one process", "nodes"]
)
def test_a_full_disk_is_told_at_once_and_reading_goes_on(tmp_path: Path, args: list[str]) -> None:
    # Were it told at the deadline only, no answer would come before the client of this test has given up.
    env = {"CDRS_GATEWAY__PRODUCE_TIMEOUT": "600"}
    with (
        small_disk(tmp_path / "data", mebibytes=16) as disk,
        CdrsProcess(tmp_path, args, env=env).start() as cdrs,
        Subscriber(cdrs.port, "disk.>") as live,
    ):
        stored = 0
        for _ in range(20):
            assert cdrs.publish("disk.a", b'{"n":%d}' % stored).status == 201
            stored += 1
        ballast = fill(disk)
        refusals = 0
        while refusals < 5:  # what SQLite has of allocated pages may still take a few
            answer = cdrs.publish("disk.a", b'{"n":%d}' % stored)
            if answer.status == 201:
                stored += 1
                continue
            refusals += 1
            assert (answer.status, answer.json()["type"]) == (503, "/problems/disk-full"), answer
            assert int(answer.headers["retry-after"]) >= 1
        page = cdrs.request("GET", "/v1/streams/disk.a/events?limit=1000", headers={"accept": "application/json"})
        assert len(page.json()["events"]) == stored
        with Subscriber(cdrs.port, "disk.a", params={"from": "earliest"}) as late:
            late.wait_count(stored, 10)
        ballast.unlink()
        wait_until(lambda: cdrs.publish("disk.a", b'{"n":%d}' % stored).status == 201, 10, "room again")
        live.wait_count(stored + 1, 10)
        assert [json.loads(block.data)["data"]["n"] for block in live.blocks] == list(range(stored + 1))
        assert live.connections == 1


@each_path
@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("role", ["node", "gateway"])
@pytest.mark.parametrize("profile", ["embedded", "engines"])
def test_an_event_loop_that_stands_still_for_15_seconds_heals_and_loses_nothing(
    tmp_path: Path, profile: str, role: str
) -> None:
    env = {
        "FAULT_SUITE_STALL": str(STALL), "PYTHONPATH": str(ROOT / "tests" / "support" / "faults" / "site"),
    }  # fmt: skip
    with ExitStack() as stack:
        if profile == "engines":
            env |= stack.enter_context(own_place()).env
        cdrs = stack.enter_context(CdrsProcess(tmp_path, ["--nodes", "3"], env=env).start(timeout=60))
        everything = stack.enter_context(Subscriber(cdrs.port, "stall.>"))
        producers = [
            stack.enter_context(OnceProducer(cdrs.port, f"stall.s{number}", pause=0.02)) for number in range(6)
        ]
        wait_until(lambda: all(len(p.ledger.acknowledged) > 20 for p in producers), 20, "the load")
        seen = sum(len(producer.ledger.acknowledged) for producer in producers)
        os.kill(cdrs.pids(role)[0], signal.SIGUSR2)
        stalled = time.monotonic()
        if role == "node":
            wait_until(lambda: sorted(n["state"] for n in cdrs.nodes()).count("live") == 2, 10, "the others notice")
            print(f"a stalled node was out after {time.monotonic() - stalled:.2f} s")
        going = lambda: sum(len(p.ledger.acknowledged) for p in producers) > seen + 300  # noqa: E731
        wait_until(going, STALL + 20, "receipts to go on", every=0.05)
        print(f"{role}: 300 more receipts {time.monotonic() - stalled:.2f} s after the stall began")
        live = lambda: [n["state"] for n in cdrs.nodes()] == ["live"] * 3  # noqa: E731
        wait_until(live, STALL + 20, "all nodes live again")
        ledgers = [producer.finish() for producer in producers]
        for ledger in ledgers:
            print(ledger.stream, len(ledger.sent), "sent:", ledger.answers)
            assert not ledger.contradictions
        wanted = {event_id for ledger in ledgers for event_id in ledger.acknowledged}
        everything.wait(lambda: wanted <= ids(everything), 20, "everything acknowledged")
        assert len(everything.blocks) == len(ids(everything)), "an event came twice"
        assert not {event_id for ledger in ledgers for event_id in ledger.refused} & ids(everything)
        assert not [block for block in everything.controls if block.event == b"cdrs.gap"]


def ids(subscriber: Subscriber) -> set[str]:
    return {block.data.split(b'"id":"')[1].split(b'"')[0].decode() for block in list(subscriber.blocks)}
