"""The real job: a day of edits to 51 wikis through one gateway and three nodes, two of which are killed on the way.

Everything is looked at from outside: the CLI as a user runs it, and subscribers made of plain sockets.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from cdrs_process import CdrsProcess, client, wait_until
from exactly_once import check_attributes, check_exactly_once
from paced_link import PacedLink
from sample import Sample, load_sample
from sse_socket import Subscriber
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

pytestmark = pytest.mark.timeout(240)
PACE = 3_000_000
"""Bytes a second from `cdrs pub` until the last kill: the file takes five seconds, whatever the machine could do."""


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    whole = load_sample()
    share = float(os.environ.get("CDRS_SAMPLE_SHARE", "1"))
    part = whole if share >= 1 else whole.part(int(len(whole.lines) * share), tmp_path)
    print(f"sample: {part.origin}, {len(part.lines):,} events in {len(set(part.streams))} streams")
    return part


@portable_slow
@pytest.mark.parametrize(
    "restart", [pytest.param(True, id="restarts"), pytest.param(False, id="no-restart", marks=pytest.mark.slow)]
)
def test_whole_sample_survives_two_killed_nodes(tmp_path: Path, sample: Sample, restart: bool) -> None:
    everything = sample.of()
    total = len(sample.lines)
    wanted = {"wiki.>": everything, "wiki.en.wikipedia": sample.of(["wiki.en.wikipedia"]), "three": sample.of(THREE)}
    three_total = sum(map(len, wanted["three"].values()))
    args = ["--nodes", "3"] + ([] if restart else ["--no-restart"])
    with CdrsProcess(tmp_path / "cdrs", args).start() as cdrs:
        nodes = cdrs.pids("node")
        assert len(nodes) == 3, [nodes, cdrs.output()]
        with (
            Subscriber(cdrs.port, "wiki.>", cut_at=cuts(total) if restart else ()) as all_of_it,
            Subscriber(cdrs.port, "wiki.en.wikipedia") as english,
            Subscriber(cdrs.port, THREE, name="three", cut_at=() if restart else cuts(three_total)) as three,
            PacedLink(cdrs.port, lambda: PACE, again=PACE) as link,
        ):
            pub = start_pub(link.port, sample)
            try:
                for victim, share in zip(nodes, (0.35, 0.6), strict=False):
                    all_of_it.wait_count(int(total * share), DEADLINE)
                    assert pub.poll() is None, "pub ended before the kill: the test proves nothing"
                    os.kill(victim, signal.SIGKILL)
                link.release()
                out, err = pub.communicate(timeout=DEADLINE)
            finally:
                pub.kill()
            assert pub.returncode == 0, f"{out!r} {err!r} {cdrs.stderr()[-3000:]}"
            first = json.loads(out)["summary"]
            print(first)
            assert first["stored"] + first["duplicates"] == first["lines"] == total, first
            assert first["failed"] == 0
            for subscriber in (all_of_it, english, three):
                goal = sum(map(len, wanted[subscriber.name].values()))
                subscriber.wait_count(goal, DEADLINE)
            assert cdrs.process is not None
            assert cdrs.process.poll() is None

            again = client(cdrs.port, "pub", "--json", "--file", str(sample.path), *PUB, timeout=DEADLINE)
            check_again(again, total)
            marker = publish_marker(cdrs)
            for subscriber, stream in ((all_of_it, "wiki.marker"), (english, "wiki.en.wikipedia"), (three, THREE[0])):
                wait_for_marker(subscriber, marker[stream])
            for subscriber in (all_of_it, english, three):
                real = [b for b in subscriber.blocks if not b.data.endswith(b'"data":"marker"}')]
                check_exactly_once(real, wanted[subscriber.name], subscriber.name)
                check_attributes(subscriber.blocks)
                gaps = [b for b in subscriber.controls if b.event == b"cdrs.gap"]
                assert not gaps, subscriber.summary()
            cut_one = all_of_it if restart else three
            assert len(cut_one.resumed_with) >= 10, cut_one.summary()
            assert all(len(i) <= 128 for i in cut_one.resumed_with)
        check_kept(cdrs, everything)
        if restart:
            wait_until(lambda: len(cdrs.pids("node")) == 3, 30, "three nodes again")
        else:
            assert len(cdrs.pids("node")) == 1
