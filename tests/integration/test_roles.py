"""Starting, stopping and surviving, as an operator sees it: banner, ports, signals, hung and dead processes."""

from __future__ import annotations

import fcntl
import http.client
import os
import random
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cdrs_process import CdrsProcess, children, free_port, request, wait_until
from exactly_once import check_attributes, check_exactly_once
from producers import BatchProducer, Ledger, OnceProducer, Producer
from sse_socket import Subscriber
from write_paths import each_path, portable_slow

WAL_WRITE_LOCK = 120
"""Byte of a -shm file whose POSIX lock is SQLite's write lock (sqlite.org/walformat.html, section 2.3)."""

pytestmark = pytest.mark.timeout(180)


# --- banner ---------------------------------------------------------------------------------------


def test_banner_says_what_a_newcomer_needs_and_its_lines_work(tmp_path: Path) -> None:
    with CdrsProcess(tmp_path).start() as cdrs:
        said = wait_until(lambda: cdrs.output() if "curl -N" in cdrs.output() else "", 5, "the banner")
        for part in (cdrs.url, "/docs", "/console/", str(cdrs.data), "curl --json", "Ctrl+C"):
            assert part in said, f"{part} is not in\n{said}"
        post = next(line for line in said.splitlines() if "curl --json" in line)
        follow = next(line for line in said.splitlines() if "curl -N" in line)
        curl = shutil.which("curl")
        if curl is None:
            pytest.skip("no curl here")
        followed = subprocess.Popen(
            [*shlex.split(follow[follow.index("curl") :]), "--max-time", "15"], stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert followed.stdout is not None
            for line in followed.stdout:
                if line.startswith(b"id:"):
                    break
            sent = subprocess.run(
                shlex.split(post[post.index("curl") :]), capture_output=True, timeout=10, check=True
            ).stdout
            assert b'"cursor"' in sent, sent
            got = next((line for line in followed.stdout if b'"specversion"' in line), b"")
            assert got, "the curl -N line did not show what the curl --json line sent"
        finally:
            followed.kill()
            followed.communicate(timeout=5)


# --- refusing to start ----------------------------------------------------------------------------


@pytest.mark.parametrize("args", [[], ["--nodes", "2"]], ids=["one", "nodes"])
def test_taken_port_is_named_with_what_to_do(tmp_path: Path, args: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = run_to_end(CdrsProcess(tmp_path, args, port=port))
        assert code == 1
        assert str(port) in said
        assert "--port" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
@pytest.mark.parametrize("args", [[], ["--nodes", "2"]], ids=["one", "nodes"])
def test_other_binds_than_loopback_are_refused(tmp_path: Path, host: str, args: list[str]) -> None:
    cdrs = CdrsProcess(tmp_path, args, env={"CDRS_GATEWAY__HOST": host})
    code, said = run_to_end(cdrs)
    assert code == 1
    assert "--insecure" in said
    assert "Traceback" not in said
    assert not cdrs.data.exists() or not list(cdrs.data.iterdir()), "a refused start left files"


def test_insecure_is_taken_at_its_word(tmp_path: Path) -> None:
    with CdrsProcess(tmp_path, ["--insecure"], env={"CDRS_GATEWAY__HOST": "0.0.0.0"}).start() as cdrs:
        assert cdrs.publish("roles.open", b"1").status == 201


@pytest.mark.parametrize("args", [[], ["--nodes", "1"]], ids=["one", "nodes"])
def test_the_data_folder_is_its_owners_alone(tmp_path: Path, args: list[str]) -> None:
    cdrs = CdrsProcess(tmp_path, args)
    with cdrs.start():
        assert stat.S_IMODE(cdrs.data.stat().st_mode) == 0o700


def run_to_end(cdrs: CdrsProcess, timeout: float = 15.0) -> tuple[int, str]:
    with stopping(cdrs):
        cdrs.start(wait=False)
        return cdrs.wait(timeout), cdrs.output()


@contextmanager
def stopping(cdrs: CdrsProcess) -> Iterator[CdrsProcess]:
    try:
        yield cdrs
    finally:
        cdrs.stop()


# --- signals --------------------------------------------------------------------------------------


@each_path
@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, id="ctrl-c", marks=pytest.mark.slow), pytest.param(signal.SIGTERM, id="term")],
)
@pytest.mark.parametrize("args", [[], ["--nodes", "2"]], ids=["one", "nodes"])
def test_a_signal_drains_and_exits_0_within_5_seconds(tmp_path: Path, args: list[str], number: int) -> None:
    with CdrsProcess(tmp_path, args).start() as cdrs, ExitStack() as stack:
        subscribers = [stack.enter_context(Subscriber(cdrs.port, "roles.>", retry_seconds=30)) for _ in range(20)]
        assert cdrs.publish("roles.a", b"1").status == 201
        for subscriber in subscribers:
            subscriber.wait_count(1, 10)
        processes = [cdrs.pid, *children(cdrs.pid)]
        started = time.monotonic()
        cdrs.signal(number)
        assert cdrs.wait(10) == 0, cdrs.stderr()[-3000:]
        took = time.monotonic() - started
        assert took <= 5.0, f"{took:.2f} s"
        for subscriber in subscribers:
            subscriber.wait(lambda s=subscriber: bool(s.ends), 5, "its end")
            byes = [b for b in subscriber.controls if b.event == b"cdrs.bye"]
            assert len(byes) == 1, subscriber.summary()
            assert b'"drain"' in byes[0].data
            assert subscriber.ends[0] == "clean", subscriber.summary()
        left = [pid for pid in processes if (Path("/proc") / str(pid)).exists()]
        assert not left, "children outlived it"
        assert "Traceback" not in cdrs.output(), cdrs.output()


@portable_slow
@pytest.mark.parametrize(
    "args", [pytest.param([], id="one"), pytest.param(["--nodes", "2"], id="nodes", marks=pytest.mark.slow)]
)
def test_a_second_signal_forces_130(tmp_path: Path, args: list[str]) -> None:
    env = {"CDRS_GATEWAY__DRAIN_DELAY": "3"}
    with CdrsProcess(tmp_path, args, env=env).start() as cdrs, Subscriber(cdrs.port, "roles.a", retry_seconds=30):
        family = children(cdrs.pid)
        cdrs.signal(signal.SIGINT)
        wait_until(lambda: not_ready(cdrs.port), 3, "/readyz to say 503")
        cdrs.signal(signal.SIGINT)
        assert cdrs.wait(2) == 130
        wait_until(lambda: not any((Path("/proc") / str(p)).exists() for p in family), 10, "the children to follow")


def not_ready(port: int) -> bool:
    try:
        return request(port, "GET", "/readyz", timeout=2).status == 503
    except (OSError, http.client.HTTPException):
        return True


def test_children_follow_a_killed_supervisor(tmp_path: Path) -> None:
    with CdrsProcess(tmp_path, ["--nodes", "2"]).start() as cdrs:
        family = children(cdrs.pid)
        assert len(family) == 3
        cdrs.kill()
        wait_until(lambda: not any((Path("/proc") / str(p)).exists() for p in family), 10, "the children to end")


# --- roles apart ----------------------------------------------------------------------------------


@each_path
def test_gateway_and_nodes_started_by_hand(tmp_path: Path) -> None:
    """Three terminals, one folder: two nodes and a gateway find each other through the registry."""
    data = tmp_path / "data"
    with ExitStack() as stack:
        nodes = []
        for number in (1, 2):
            node = CdrsProcess(tmp_path / f"n{number}", ["--data", str(data)], role="node", port=free_port(),
                               env={"CDRS_NODE__ID": f"by-hand-{number}"})  # fmt: skip
            stack.callback(node.stop)
            node.start(wait=False)
            nodes.append(node)
        gateway = CdrsProcess(tmp_path / "g", ["--data", str(data)], role="gateway")
        stack.callback(gateway.stop)
        gateway.start()
        wait_until(lambda: len([n for n in gateway.nodes() if n["state"] == "live"]) == 2, 10, "two live nodes")
        subscriber = stack.enter_context(Subscriber(gateway.port, "hand.>"))
        for i in range(24):
            assert gateway.publish(f"hand.s{i}", b'{"i":%d}' % i).status == 201
        nodes[0].kill()
        for i in range(24):
            assert gateway.publish(f"hand.s{i}", b'{"j":%d}' % i).status == 201
        subscriber.wait_count(48, 10)
        check_exactly_once(
            subscriber.blocks, {f"hand.s{i}": [b'{"i":%d}' % i, b'{"j":%d}' % i] for i in range(24)}, "by hand"
        )
        nodes[1].signal(signal.SIGINT)
        assert nodes[1].wait(5) == 0, nodes[1].stderr()


# --- dead and hung processes ----------------------------------------------------------------------


@contextmanager
def traffic(cdrs: CdrsProcess) -> Iterator[Callable[[], None]]:
    """Producers and a subscriber; leaving it checks that nothing was lost, doubled or reordered."""
    producers: list[Producer] = [BatchProducer(cdrs.port, f"traffic.batch.s{i}", pause=0.02) for i in range(4)]
    producers += [OnceProducer(cdrs.port, f"traffic.once.s{i}", pause=0.02) for i in range(4)]
    with Subscriber(cdrs.port, "traffic.>") as everything, ExitStack() as stack:

        def flows() -> None:
            """Each stream of the careful producers goes on."""
            seen = {p.ledger.stream: len(p.ledger.acknowledged) for p in producers}
            for producer in producers[:4]:
                wait_until(
                    lambda p=producer: p.error or len(p.ledger.acknowledged) > seen[p.ledger.stream] + 60, 30,
                    lambda p=producer: f"{p.ledger.stream} to go on: {p.ledger.answers}\n{cdrs.stderr()[-2000:]}",
                )  # fmt: skip

        for producer in producers:
            stack.enter_context(producer)
        flows()
        yield flows
        ledgers = [p.finish() for p in producers]
        for ledger in ledgers:
            print(ledger.stream, len(ledger.sent), "sent", len(ledger.acknowledged), "acknowledged", ledger.answers)
            assert not ledger.contradictions, ledger.contradictions[:3]
        for stream in {ledger.stream for ledger in ledgers}:
            assert cdrs.publish(stream, b'"last"', ce_id="last", ce_source="last", ce_type="t",
                                ce_specversion="1.0").status in (200, 201)  # fmt: skip
        everything.wait(
            lambda: sum(1 for b in everything.blocks[-60:] if b.data.endswith(b'"data":"last"}')) == len(ledgers), 20,
            "the last event of each stream",
        )  # fmt: skip
        real = [b for b in everything.blocks if not b.data.endswith(b'"data":"last"}')]
        careful = {ledger.stream: ledger.sent for ledger in ledgers[:4]}
        check_attributes(real, source="ledger")
        once = {ledger.stream: ledger for ledger in ledgers[4:]}
        check_exactly_once([b for b in real if b'"cdrsstream":"traffic.batch.' in b.data], careful, "traffic")
        for stream, ledger in once.items():
            ids = [b.data.split(b'"id":"')[1].split(b'"')[0].decode() for b in real if f'"{stream}"'.encode() in b.data]
            check_order(ids, ledger)
            assert not set(ledger.acknowledged) - set(ids), f"{stream}: acknowledged and lost"
            assert not ledger.refused & set(ids), f"{stream}: refused with 503 and yet stored"
        assert not [b for b in everything.controls if b.event == b"cdrs.gap"], everything.summary()


def check_order(ids: list[str], ledger: Ledger) -> None:
    """Order is promised from receipt to request: nothing sent after an event's receipt comes before that event. One
    whose outcome was unknown may come later than its successors (a node that hung wrote it when it went on)."""
    latest = 0
    for event_id in ids:
        number = int(event_id.rpartition("/")[2])
        assert event_id not in ledger.acknowledged or number > latest, f"{event_id} came after number {latest}"
        latest = max(latest, number)


@portable_slow
def test_a_hung_node_loses_its_traffic_and_comes_back(tmp_path: Path) -> None:
    with CdrsProcess(tmp_path, ["--nodes", "3"]).start() as cdrs:
        wait_until(lambda: len([n for n in cdrs.nodes() if n["state"] == "live"]) == 3, 10, "three live nodes")
        with traffic(cdrs) as flows:
            victim = stop_outside_transaction(cdrs, cdrs.pids("node")[1])
            started = time.monotonic()
            wait_until(lambda: sorted(n["state"] for n in cdrs.nodes()).count("live") == 2, 10, "two live nodes")
            print(f"a hung node was out after {time.monotonic() - started:.2f} s")
            flows()
            os.kill(victim, signal.SIGCONT)
            wait_until(lambda: len([n for n in cdrs.nodes() if n["state"] == "live"]) == 3, 15, "all three again")
            flows()


@portable_slow
def test_dead_nodes_and_a_dead_gateway_are_started_again(tmp_path: Path) -> None:
    with CdrsProcess(tmp_path, ["--nodes", "2"]).start() as cdrs, traffic(cdrs) as flows:
        for role in ("node", "gateway"):
            victim = cdrs.pids(role)[0]
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda r=role, v=victim: len(set(cdrs.pids(r)) - {v}) == {"node": 2, "gateway": 1}[r], 20,
                       f"another {role}")  # fmt: skip
            cdrs.wait_ready()
            flows()


@portable_slow
@pytest.mark.parametrize("end", [pytest.param("goes on", marks=pytest.mark.slow), "is killed"])
def test_a_writer_stopped_inside_its_transaction(tmp_path: Path, end: str) -> None:
    """The other node cannot write either; clients hear 503 or 504 within their deadline; then everything goes on."""
    env = {"CDRS_GATEWAY__PRODUCE_TIMEOUT": "4", "CDRS_LOG__APPEND_TIMEOUT": "1", "CDRS_GATEWAY__HANDOFF_TIMEOUT": "2"}
    with CdrsProcess(tmp_path, ["--nodes", "2"], env=env).start() as cdrs, traffic(cdrs) as flows:
        victim = stop_inside_transaction(cdrs)
        started = time.monotonic()
        answer = cdrs.publish("traffic2.blocked", b"1")
        took = time.monotonic() - started
        print(f"blocked: {answer.status} after {took:.1f} s: {answer.body[:200]!r}")
        assert answer.status in (503, 504), answer
        assert took < 8, f"{took:.1f} s"
        assert answer.headers["content-type"].startswith("application/problem+json")
        assert write_lock_holder(cdrs.data) == victim, "it was not blocked after all"
        os.kill(victim, signal.SIGCONT if end == "goes on" else signal.SIGKILL)
        flows()
        assert cdrs.publish("traffic2.blocked", b"2").status == 201


@portable_slow
def test_a_node_stopped_while_it_writes_to_the_registry(tmp_path: Path) -> None:
    """Nobody's heartbeat can be written any more. The registry is a hint: produce and subscribe do not wait for it,
    and the node that hangs is found by what it does not answer."""
    with CdrsProcess(tmp_path, ["--nodes", "3"]).start() as cdrs, traffic(cdrs) as flows:
        nodes = cdrs.pids("node")
        for _ in range(100):
            victim = wait_until(
                lambda: (pid := write_lock_holder(cdrs.data, "registry.db")) in nodes and pid, 10, "a beat", every=0
            )  # fmt: skip
            stop(victim)
            inside = write_lock_holder(cdrs.data, "registry.db") == victim
            if inside and write_lock_holder(cdrs.data) != victim:
                break
            os.kill(victim, signal.SIGCONT)
        else:
            pytest.fail("no node was ever caught writing to the registry")
        flows()
        assert write_lock_holder(cdrs.data, "registry.db") == victim, "it was not blocked after all"
        os.kill(victim, signal.SIGCONT)
        wait_until(lambda: len([n for n in cdrs.nodes() if n["state"] == "live"]) == 3, 15, "three live nodes again")
        flows()


def stop_outside_transaction(cdrs: CdrsProcess, victim: int) -> int:
    """SIGSTOP a node at a moment when it does not hold the log's write lock, which would stop all others with it."""
    while True:
        stop(victim)
        if write_lock_holder(cdrs.data) != victim:
            return victim
        os.kill(victim, signal.SIGCONT)
        time.sleep(0.003)


def stop(pid: int) -> None:
    """SIGSTOP, and wait until it stands still."""
    os.kill(pid, signal.SIGSTOP)
    state = Path("/proc") / str(pid) / "stat"
    wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", 5, "the stop", every=0.0002)


def stop_inside_transaction(cdrs: CdrsProcess) -> int:
    """SIGSTOP a node at random moments until one is caught holding the log's write lock."""
    nodes = cdrs.pids("node")
    for _ in range(3000):
        victim = write_lock_holder(cdrs.data) or random.choice(nodes)
        if victim not in nodes:
            continue
        stop(victim)
        if write_lock_holder(cdrs.data) == victim:
            return victim
        os.kill(victim, signal.SIGCONT)
        time.sleep(random.uniform(0, 0.003))
    pytest.fail("no node was ever caught inside a transaction")


def write_lock_holder(data: Path, database: str = "log.db") -> int:
    """Pid of the process that holds SQLite's write lock, asked of the kernel; 0 where nobody does."""
    with (data / f"{database}-shm").open("rb") as file:
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, WAL_WRITE_LOCK, 1, 0)
        kind, _, _, _, pid = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, lock))
        return 0 if kind == fcntl.F_UNLCK else int(pid)
