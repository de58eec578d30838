"""scripts/engines as people use it: real processes, one command after the other."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ops.engines.mongo_wire import command as mongo
from ops.engines.processes import MARK, marked

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "engines"
KAFKA_TOOLS = "org.apache.kafka.tools"
needs_java = pytest.mark.skipif(
    not shutil.which("java") and not os.environ.get("CI"), reason="there is no Java here; on CI there must be"
)


class Engines:
    """A set in a folder of the test's own; the downloads are everybody's."""

    def __init__(self, folder: Path, name: str = "test") -> None:
        self.folder = folder
        self.name = name

    def __call__(self, verb: str, *words: str, status: int | None = 0, stdin: str = "", **environment: str) -> str:
        argv = [str(SCRIPT), verb, "--set", self.name, "--data", str(self.folder), *words]
        run = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=600, env={**os.environ, **environment}
        )
        wanted = {0, 3} if status is None else {status}
        assert run.returncode in wanted, f"{shlex.join(argv)}: {run.returncode}\n{run.stdout}\n{run.stderr}"
        return run.stdout if run.returncode in {0, 3} else run.stderr

    def status(self, *, status: int | None = 0) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads(self("status", "--json", status=status))
        return tree

    def members(self, *, status: int | None = 0) -> dict[str, dict[str, Any]]:
        return {member["name"]: member for member in self.status(status=status)["members"]}


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    found = Engines(tmp_path / "set")
    yield found
    found("down", "--purge")
    assert marked(MARK, found.folder) == []


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def listening() -> list[tuple[str, int]]:
    """Local address, in the kernel's hexadecimal, and port of every listening TCP socket."""
    found: list[tuple[str, int]] = []
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(file).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, port = local.split(":")
            if state == "0A":
                found.append((address, int(port, 16)))
    return found


@needs_java
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_set_through_its_life(engines: Engines) -> None:
    engines("up")
    tree = engines.status()
    assert tree["ready"]
    members = {member["name"]: member for member in tree["members"]}
    assert len(members) == 9
    assert {member["state"] for member in members.values()} == {"running"}
    assert [members[f"mongo-{n}"]["role"] for n in (1, 2, 3)].count("primary") == 1

    # Nothing of it can be reached from another machine.
    first = min(member["port"] for member in members.values())
    ours = [(address, port) for address, port in listening() if first <= port < first + 40]
    assert len({port for _, port in ours}) == 12
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert {address for address, _ in ours} <= loopback

    # Another `up` changes nothing.
    engines("up")
    assert {name: member["pid"] for name, member in engines.members().items()} == {
        name: member["pid"] for name, member in members.items()
    }

    # Three copies of what is written, and one member of each engine dies.
    broker = f"127.0.0.1:{members['kafka-1']['port']},127.0.0.1:{members['kafka-2']['port']}"
    topic = ("--bootstrap-server", broker, "--topic", "kept")
    engines("java", f"{KAFKA_TOOLS}.TopicCommand", *topic, "--create")
    produced = ("--reader-property", "parse.key=false", "--command-property", "acks=all")
    engines("java", f"{KAFKA_TOOLS}.ConsoleProducer", *topic, *produced, stdin="one\ntwo\n")
    insert(members, {"_id": 1})
    killed = engines("kill", "mongo-primary", "kafka-leader", "hazelcast-1").split()
    assert [name.rpartition("-")[0] for name in killed] == ["mongo", "kafka", "hazelcast"]
    states = engines.members(status=3)
    assert {name for name, member in states.items() if member["state"] == "down"} == set(killed)
    assert killed[0] in engines("kill", killed[0], status=1)
    wait_for(lambda: "primary" in [member["role"] for member in engines.members(status=3).values()], 30.0)
    insert(engines.members(status=3), {"_id": 2})
    engines("start", *killed)
    assert engines.status()["ready"]

    # A paused member keeps its port and answers nobody.
    engines("pause", "mongo-2")
    assert engines.members(status=3)["mongo-2"]["state"] == "paused"
    with pytest.raises(TimeoutError):
        mongo(members["mongo-2"]["port"], {"hello": 1, "$db": "admin"}, timeout=0.5)
    engines("resume", "mongo-2")
    wait_for(lambda: engines.members(status=None)["mongo-2"]["role"])
    engines("up")

    # All of it stops, nothing is left running, and the data is there at the next start.
    engines("down")
    assert marked(MARK, engines.folder) == []
    assert {member["state"] for member in engines.members(status=3).values()} == {"down"}
    engines("up")
    found = mongo(primary(engines.members()), {"find": "kept", "$db": "test"})  # a count may be off after a SIGKILL
    assert len(found["cursor"]["firstBatch"]) == 2
    read = engines("java", f"{KAFKA_TOOLS}.consumer.ConsoleConsumer", *topic, "--from-beginning", "--max-messages", "2")
    assert read.split() == ["one", "two"]

    engines("down", "--purge")
    assert marked(MARK, engines.folder) == []
    assert not engines.folder.exists()


def primary(members: dict[str, dict[str, Any]]) -> int:
    return next(int(member["port"]) for member in members.values() if member["role"] == "primary")


def insert(members: dict[str, dict[str, Any]], document: dict[str, Any]) -> None:
    concern = {"w": "majority", "j": True, "wtimeout": 10_000}
    request = {"insert": "kept", "documents": [document], "writeConcern": concern, "$db": "test"}
    assert mongo(primary(members), request, timeout=15)["n"] == 1


@needs_java
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_sets_side_by_side(tmp_path: Path) -> None:
    one, two = Engines(tmp_path / "one", "one"), Engines(tmp_path / "two", "two")
    try:
        for each in (one, two):
            each("up", "--only", "hazelcast")
        urls = [shlex.split(each("env")) for each in (one, two)]
        assert [words[1].rpartition("/")[2] for words in urls] == ["cdrs-one", "cdrs-two"]
        assert not {m["port"] for m in one.members().values()} & {m["port"] for m in two.members().values()}

        # A number that now belongs to a process of somebody else: it is left alone.
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as bystander:
            tree = json.loads((one.folder / "state.json").read_text())
            tree["members"]["hazelcast-2"]["pid"] = bystander.pid
            (one.folder / "state.json").write_text(json.dumps(tree))
            assert one.members(status=3)["hazelcast-2"]["state"] == "down"
            one("down")
            assert bystander.poll() is None
            bystander.kill()
        # The member that was written down wrongly is gone all the same.
        assert marked(MARK, one.folder) == []
        assert two.status()["ready"]
        assert "--purge" in two("up", "--base-port", "20000", status=1)
    finally:
        for each in (one, two):
            each("down", "--purge")


@needs_java
@pytest.mark.slow
def test_a_port_that_is_taken_is_named(engines: Engines) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 31_721))
        other.listen()
        told = engines("up", "--only", "hazelcast", "--base-port", "31700", status=1)
    assert "31721" in told


def test_what_is_missing_is_said(engines: Engines, tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    # Enough for the script itself, no Java.
    for program in ("bash", "dirname", "env"):
        (bare / program).symlink_to(shutil.which(program) or program)
    (bare / "python3").symlink_to(sys.executable)
    told = engines("up", "--only", "kafka", status=1, PATH=str(bare), JAVA_HOME="")
    assert "Java 17 or newer" in told
    assert "Traceback" not in told


def test_a_set_that_is_not_there(engines: Engines) -> None:
    assert "scripts/engines up" in engines("env", status=1)
    assert "scripts/engines up" in engines("kill", "kafka-1", status=1)
    assert "--only" in engines("up", "--only", "redis", status=1)
    engines("down")
    assert not engines.folder.exists(), "looking at nothing leaves nothing"


def test_interrupt_ends_with_a_word(engines: Engines) -> None:
    folder = engines.folder
    folder.mkdir()
    holder = (
        "import fcntl,sys,time;f=open(sys.argv[1],'w');fcntl.flock(f,fcntl.LOCK_EX);print(flush=True);time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder, folder / "lock"], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        waiting = subprocess.Popen([SCRIPT, "up", "--data", folder], stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        assert str(folder) in waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        try:
            _, told = waiting.communicate(timeout=10)
        finally:
            waiting.kill()
            other.kill()
    assert waiting.returncode == 130
    assert "Traceback" not in told
