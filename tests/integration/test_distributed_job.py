"""The real job on the real engines: a day of edits through HAProxy, two gateways and three nodes over Kafka, Hazelcast
and MongoDB, while nodes and engines are killed or everything of ours is replaced; then counted three ways.

Runs on the set that ``scripts/engines up`` started, in a topic and a database of its own. Members are killed only where
``CDRS_TEST_ENGINES`` allows it, and started again.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from cdrs_process import client, wait_until
from deployment import Deployment, read_only
from engine_place import Engines, own_place
from engine_set import expendable
from exactly_once import check_attributes, check_exactly_once
from log_judge import Judgement, judge, read_log
from paced_link import PacedLink
from pymongo import MongoClient
from sample import Sample, load_sample
from sse_socket import Subscriber, data_of
from wikipedia_job import (
    DEADLINE,
    PUB,
    THREE,
    check_again,
    check_kept,
    cuts,
    publish_marker,
    start_pub,
    wait_for_marker,
)
from write_paths import portable_slow

pytestmark = pytest.mark.timeout(300)

PACE = 1_000_000
"""Bytes a second from the producer while faults go on: about two thousand events."""
TRICKLE = 50_000
"""The same once a fault takes so long that there would be nothing left for the others."""
SMALLEST = 1000
"""Judgement window with which the store and not the window decides what is a duplicate."""
PROGRESS = 300
"""Events that must get through after each fault before the next one."""


WINDOWS = [pytest.param(SMALLEST, id="store-decides"), pytest.param(32_768, id="window", marks=pytest.mark.slow)]


@pytest.fixture(params=WINDOWS)
def engines(request: pytest.FixtureRequest) -> Iterator[Engines]:
    # What is older than the window is known to the store only, so without it such a window must not decide.
    strict = str(request.param == SMALLEST).lower()
    with own_place(CDRS_NODE__WINDOW=str(request.param), CDRS_DEDUPE__STRICT=strict) as engines:
        yield engines


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    whole = load_sample()
    share = float(os.environ.get("CDRS_SAMPLE_SHARE", "1"))
    return whole if share >= 1 else whole.part(int(len(whole.lines) * share), tmp_path)


Fault = tuple[str, Callable[[], object]]


@portable_slow
def test_whole_sample_survives_killed_nodes_and_engines(tmp_path: Path, sample: Sample, engines: Engines) -> None:
    expendable()
    with Deployment(tmp_path / "cdrs", engines.env) as cdrs:
        faults: list[Fault] = [
            ("node killed", lambda: cdrs.kill_node(0)),
            ("broker killed", lambda: engines.kill("kafka-leader")),
            ("Hazelcast member killed", lambda: engines.kill("hazelcast-1")),
            ("primary killed", lambda: engines.kill("mongo-primary")),
            ("another node killed", lambda: cdrs.kill_node(1)),
        ]
        play(cdrs, sample, engines, faults)
    check_log_and_store(engines, sample)


@portable_slow
@pytest.mark.slow
def test_gateways_and_nodes_keep_nothing(tmp_path: Path, sample: Sample, engines: Engines) -> None:
    """They have no place to write to, and every one of them is replaced, one by one, by a fresh one on another port."""
    if engines.window == SMALLEST:  # the whole of it is played with the other window
        sample = sample.part(len(sample.lines) // 3, tmp_path)
    with Deployment(tmp_path / "cdrs", engines.env, prefix=read_only()) as cdrs:
        faults: list[Fault] = [
            ("node replaced", lambda: cdrs.replace_node(0)),
            ("gateway replaced", lambda: cdrs.replace_gateway(0)),
            ("node killed and replaced", lambda: cdrs.replace_node(1, signal.SIGKILL)),
            ("gateway killed and replaced", lambda: cdrs.replace_gateway(1, signal.SIGKILL)),
            ("last node replaced", lambda: cdrs.replace_node(2)),
        ]
        play(cdrs, sample, engines, faults)
        assert len(cdrs.gone) == len(cdrs.processes)
        assert not {each.port for each in cdrs.gone} & {each.port for each in cdrs.processes}
    assert not cdrs.wrote()
    check_log_and_store(engines, sample)


def play(cdrs: Deployment, sample: Sample, engines: Engines, faults: Sequence[Fault]) -> None:
    """The job, with these faults while it runs; and again, which must add nothing."""
    total = len(sample.lines)
    three = sample.of(THREE)
    wanted = {"wiki.>": sample.of(), "wiki.en.wikipedia": sample.of(["wiki.en.wikipedia"]), "three": three}
    with (
        Subscriber(cdrs.port, "wiki.>", cut_at=cuts(total)) as all_of_it,
        Subscriber(cdrs.port, "wiki.en.wikipedia") as english,
        Subscriber(cdrs.port, THREE, name="three", cut_at=cuts(sum(map(len, three.values())))) as those,
        ExitStack() as stack,
    ):
        goal = total // (len(faults) + 1)
        pace = lambda: PACE if len(all_of_it.blocks) < goal else TRICKLE  # noqa: E731
        link = stack.enter_context(PacedLink(cdrs.port, pace, again=PACE))
        pub = stack.enter_context(start_pub(link.port, sample))
        stack.callback(pub.kill)

        def progress() -> None:
            try:
                all_of_it.wait_count(min(len(all_of_it.blocks) + PROGRESS, total), DEADLINE)
            except AssertionError as error:
                code = pub.poll()
                pub.kill()
                error.add_note(f"pub ({code}): {pub.communicate()[1][-3000:].decode()}")
                for each in cdrs.processes:
                    error.add_note(f"{each.role} on {each.port}: {each.stderr()[-1500:]}")
                raise
            assert pub.poll() is None, "pub ended before the last fault: the test proves nothing"

        for name, fault in faults:
            progress()
            began = time.monotonic()
            said = fault()
            goal += total // (len(faults) + 1)
            print(f"{name} {said or ''} at event {len(all_of_it.blocks)}, took {time.monotonic() - began:.1f} s")
        progress()
        link.release()
        check_first(pub, total, cdrs)
        subscribers = (all_of_it, english, those)
        for subscriber in subscribers:
            subscriber.wait_count(sum(map(len, wanted[subscriber.name].values())), DEADLINE)
        check_again(client(cdrs.port, "pub", "--json", "--file", str(sample.path), *PUB, timeout=DEADLINE), total)
        marker = publish_marker(cdrs)
        for subscriber, stream in zip(subscribers, ("wiki.marker", "wiki.en.wikipedia", THREE[0]), strict=True):
            wait_for_marker(subscriber, marker[stream])
        for subscriber in subscribers:
            real = [b for b in subscriber.blocks if not b.data.endswith(b'"data":"marker"}')]
            check_exactly_once(real, wanted[subscriber.name], subscriber.name)
            check_attributes(subscriber.blocks)
            assert not [b for b in subscriber.controls if b.event == b"cdrs.gap"], subscriber.summary()
        assert len(all_of_it.resumed_with) >= 10, all_of_it.summary()
    cdrs.check_alive()
    events = total + len(marker)
    wait_until(lambda: documents(engines) == events, 30, lambda: f"{events} documents, not {documents(engines)}")
    check_kept(cdrs, wanted["wiki.>"])


def check_first(pub: subprocess.Popen[bytes], total: int, cdrs: Deployment) -> None:
    """All of the file was acknowledged."""
    out, err = pub.communicate(timeout=DEADLINE)
    assert pub.returncode == 0, f"{out!r} {err!r} {[each.stderr()[-1500:] for each in cdrs.processes]}"
    first = json.loads(out)["summary"]
    print(first, err.decode())
    assert first["stored"] + first["duplicates"] == first["lines"] == total, first
    assert first["failed"] == 0


def documents(engines: Engines) -> int:
    """Visible records in MongoDB."""
    with MongoClient[dict[str, object]](engines.env["CDRS_STORE__URL"]) as mongo:
        return mongo[engines.database].events.count_documents({"s": {"$exists": True}})


def check_log_and_store(engines: Engines, sample: Sample) -> None:
    """What is visible in Kafka is what was acknowledged, in its order, and MongoDB has that and a stub for the rest."""
    entries, ends = asyncio.run(read_log(engines.env["CDRS_LOG__URL"], engines.topic))
    judgement = judge(entries, ends, engines.window)
    print(f"log: {judgement}")
    lines = judgement.lines()
    extra = {"wiki.marker", "wiki.en.wikipedia", THREE[0]}
    for stream, wanted in (sample.of() | {"wiki.marker": []}).items():
        found = [data_of(entry.value) for entry in lines.pop(stream)]
        assert found == [*wanted, *([b'"marker"'] if stream in extra else [])], stream
    assert not lines
    check_store(engines, judgement)


def check_store(engines: Engines, judgement: Judgement) -> None:
    values = {entry.position: entry.value for entry in judgement.visible}
    stubs = 0
    with MongoClient[dict[str, object]](engines.env["CDRS_STORE__URL"]) as mongo:
        for document in mongo[engines.database].events.find({}, {"v": 1}):
            position: bytes = document["_id"]  # type: ignore[assignment]
            if "v" in document:
                assert values.pop((position[8], int.from_bytes(position[9:], "big"))) == document["v"]
            else:
                stubs += 1
    assert not values, f"{len(values)} events are missing in the store"
    assert stubs == sum(judgement.ends.values()) - len(judgement.visible)
