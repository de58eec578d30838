"""Several gateway processes on one port: what a user sees of them, and what the death or drain of one does."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cdrs_process import CdrsProcess, command_line, request, wait_until
from exactly_once import check_exactly_once
from knocker import Knocker
from sse_socket import Subscriber
from write_paths import portable_slow

from gateway.siblings import merged
from services.listening import listening, listening_together
from shared.errors import StartError

pytestmark = pytest.mark.timeout(120)

SUBSCRIBERS = 24


@pytest.fixture
def cdrs(tmp_path: Path) -> Iterator[CdrsProcess]:
    with CdrsProcess(tmp_path, ["--gateways", "2"]).start() as started:
        wait_until(lambda: started.output().count("gateway serves") == 2 and "ready (" in started.output(), 15, "both")
        yield started


def subscribers_of_each(port: int) -> dict[str, int]:
    """Worker → open streams, as any of them tells."""
    text = request(port, "GET", "/metrics").body.decode()
    found = re.findall(r'^cdrs_sse_connections\{worker="([^"]+)"\} (\S+)$', text, re.MULTILINE)
    return {worker: int(float(count)) for worker, count in found}


def gateways(cdrs: CdrsProcess) -> list[dict[str, Any]]:
    answer = cdrs.request("GET", "/v1/nodes", headers={"accept": "application/json"})
    return [item for item in answer.json()["nodes"] if item["role"] == "gateway" and item["state"] == "live"]


def worker_pids(cdrs: CdrsProcess) -> dict[str, int]:
    return {command_line(pid)[command_line(pid).index("--supervised") + 1]: pid for pid in cdrs.pids("gateway")}


def by_worker(subscribers: list[Subscriber]) -> int:
    return sum(1 for each in subscribers if each.connections > 1)


@portable_slow
def test_one_port_two_processes_and_nothing_is_lost_when_one_dies_or_drains(cdrs: CdrsProcess) -> None:
    with ExitStack() as stack:
        everyone = [stack.enter_context(Subscriber(cdrs.port, "worker.>")) for _ in range(SUBSCRIBERS)]
        sent: list[bytes] = []

        def publish(count: int) -> None:
            for _ in range(count):
                sent.append(b'{"n":%d}' % len(sent))
                assert cdrs.publish("worker.a", sent[-1]).status == 201

        publish(20)
        spread = wait_until(
            lambda: (s := subscribers_of_each(cdrs.port)) and sum(s.values()) == SUBSCRIBERS and s, 5, "all"
        )
        assert sorted(spread) == ["gateway-1", "gateway-2"]
        assert all(spread.values()), f"one process has them all: {spread}"

        with Knocker(cdrs.port) as knocker:
            os.kill(worker_pids(cdrs)["gateway-1"], signal.SIGKILL)
            wait_until(lambda: by_worker(everyone) == spread["gateway-1"], 15, "those of the dead one to come again")
            wait_until(lambda: len(worker_pids(cdrs)) == 2, 15, "its successor")
        assert knocker.connected
        assert not knocker.failures, "the port was closed meanwhile"
        publish(20)
        for each in everyone:
            each.wait_count(len(sent), 15)
        assert by_worker(everyone) == spread["gateway-1"], "streams of the other one were cut"

        before = {id(each): each.connections for each in everyone}
        there = wait_until(
            lambda: (s := subscribers_of_each(cdrs.port)) and sum(s.values()) == SUBSCRIBERS and s, 10, "all again"
        )
        os.kill(worker_pids(cdrs)["gateway-2"], signal.SIGTERM)
        moved = wait_until(
            lambda: len(m := [s for s in everyone if s.connections > before[id(s)]]) == there["gateway-2"] and m,
            20, "those of the drained one to come again",
        )  # fmt: skip
        assert all(b'"drain"' in m.controls[-1].data or b"cdrs.bye" in {c.event for c in m.controls} for m in moved)
        wait_until(lambda: len(worker_pids(cdrs)) == 2, 15, "its successor")
        publish(20)
        for each in everyone:
            each.wait_count(len(sent), 15)
            check_exactly_once(each.blocks, {"worker.a": sent}, each.name)
            assert not [c for c in each.controls if c.event == b"cdrs.gap"], each.summary()

        cdrs.signal(signal.SIGTERM)
        assert cdrs.wait(10) == 0, cdrs.stderr()[-3000:]
        assert "Traceback" not in cdrs.output(), cdrs.output()


@portable_slow
def test_gateway_workers_are_each_in_the_registry_and_answer_for_themselves(tmp_path: Path) -> None:
    with CdrsProcess(tmp_path / "all").start() as host:
        args = ["--data", str(host.data), "--workers", "2"]
        with CdrsProcess(tmp_path / "workers", args, role="gateway").start() as workers:
            wait_until(lambda: len(gateways(host)) == 3, 10, "three gateways in the registry")
            own = [item["url"] for item in gateways(host) if item["url"] != host.url]
            for url in own:
                port = int(url.rpartition(":")[2])
                assert request(port, "GET", "/readyz").status == 200
                assert list(subscribers_of_each(port)) != ["gateway-1", "gateway-2"], "it told of the others, too"
            named = {request(int(u.rpartition(":")[2]), "GET", "/readyz?verbose").json()["worker"] for u in own}
            assert named == {"gateway-1", "gateway-2"}
            with Subscriber(workers.port, "workers.>") as subscriber:
                assert host.publish("workers.a", b"1").status == 201
                assert workers.publish("workers.a", b"2").status == 201
                subscriber.wait_count(2, 10)
            openmetrics = workers.request("GET", "/metrics", headers={"accept": "application/openmetrics-text"})
            assert openmetrics.body.count(b"# EOF") == 1
            assert openmetrics.body.count(b"# TYPE cdrs_sse_connections gauge") == 1


def test_a_port_that_is_shared_is_shared_with_nobody_else() -> None:
    with listening_together("127.0.0.1", 0, 3, flag="--port") as servers:
        assert len({server.getsockname() for server in servers}) == 1
        port = servers[0].getsockname()[1]
        for count in (1, 2):
            with (
                pytest.raises(StartError, match="is taken"),
                listening_together("127.0.0.1", port, count, flag="--port"),
            ):
                pass
    with listening("127.0.0.1", port, flag="--port"):
        pass


def test_scrapes_are_merged_family_by_family() -> None:
    one = b'# HELP a A.\n# TYPE a gauge\na{worker="1"} 1.0\n# HELP b B.\n# TYPE b gauge\nb{worker="1"} 2.0\n# EOF\n'
    two = b'# HELP a A.\n# TYPE a gauge\na{worker="2"} 3.0\n# EOF\n'
    assert merged([one, two]) == (
        b'# HELP a A.\n# TYPE a gauge\na{worker="1"} 1.0\na{worker="2"} 3.0\n'
        b'# HELP b B.\n# TYPE b gauge\nb{worker="1"} 2.0\n# EOF\n'
    )
    assert merged([one.removesuffix(b"# EOF\n"), two]).endswith(b"2.0\n")
