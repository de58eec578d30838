"""The system under test as processes: one supervised gateway with three nodes, and a second gateway beside it, on the
files of a folder or on a set of engines of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from cdrs_process import ROOT, CdrsProcess, children, command_line, request, wait_until
from failpoints.arming import Failpoints
from faults.history import Actor

SITE = Path(__file__).with_name("site")
STALL = 5.0
"""Seconds of one stall of an event loop."""
NODES = 3


class CannotRun(Exception):
    """The machine does not let this run begin; the message says why."""


class System:
    """The embedded profile. Two gateways, so that one can watch while the other dies."""

    profile = "embedded"

    def __init__(
        self, folder: Path, env: Mapping[str, str] | None = None, *, write_path: str, own_clock: bool = False
    ) -> None:
        """``own_clock``: the wall clock of the first gateway and the nodes can be set."""
        self.folder = folder
        self.write_path = write_path
        # Whoever stands still for some seconds is so far behind that it reads history.
        sse = {"CDRS_SSE__HEARTBEAT": "2", "CDRS_SSE__BACKLOG_BYTES": "65536", "CDRS_SSE__WRITE_PATH": write_path}
        env = {"FAULT_SUITE_STALL": str(STALL), "PYTHONPATH": str(SITE), **sse, **(env or {})}
        self._clock = folder / "clock"
        clock = self._clock_variables() if own_clock else {}
        self.failpoints = Failpoints(folder / "failpoints")
        """Of those processes that are started again when they die."""
        reached = {**self.failpoints.env, "PYTHONPATH": os.pathsep.join([str(SITE), self.failpoints.env["PYTHONPATH"]])}
        self.first = CdrsProcess(folder / "first", ["--nodes", str(NODES)], env={**env, **clock, **reached})
        self.second = CdrsProcess(folder / "second", ["--data", str(self.first.data)], env=env, role="gateway")
        self.is_tmpfs = False

    @property
    def ports(self) -> list[int]:
        return [self.first.port, self.second.port]

    def _clock_variables(self) -> dict[str, str]:
        library = _build_clock(self.folder)
        if library is None:
            return {}
        self._clock.write_bytes(bytes(8))
        return {"LD_PRELOAD": str(library), "FAULT_SUITE_CLOCK": str(self._clock)}

    def jump_clock(self, ahead: int) -> None:
        """Let the wall clock be so many seconds ahead of the true one from now on."""
        if not self._clock.exists():
            raise CannotRun("a clock that jumps needs a C compiler")
        with self._clock.open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", ahead))

    def start(self) -> None:
        self.first.data.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=2g", "cdrs-faults", str(self.first.data)]
        self.is_tmpfs = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        self.first.start(timeout=90)
        self.second.start(timeout=90)

    def stop(self) -> None:
        for process in (self.second, self.first):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.stop()
        if self.is_tmpfs:
            subprocess.run(["umount", "-l", str(self.first.data)], capture_output=True, check=False)

    def processes(self) -> dict[str, int]:
        """Name → pid of the children that run: gateway, node-1, …"""
        found: dict[str, int] = {}
        for pid in children(self.first.pid):
            line = command_line(pid)
            if "--supervised" in line:
                found[line[line.index("--supervised") + 1]] = pid
        return found

    def pid(self, name: str) -> int:
        """Its pid; waits for its restart where it is down."""
        pid: int = wait_until(lambda: self.processes().get(name), 40, f"{name} to run")
        return pid

    def signal(self, name: str, number: int) -> None:
        os.kill(self.pid(name), number)

    def is_whole(self) -> bool:
        """Whether every process runs, serves, and sees the others."""
        if len(self.processes()) < NODES + 1 or not self.first.is_ready() or not self.second.is_ready():
            return False
        for process in (self.first, self.second):
            live = {each["id"] for each in process.nodes() if each["state"] == "live"}
            if len(live) < NODES:
                return False
        return True

    def wait_whole(self, timeout: float = 60.0) -> None:
        def whole() -> bool:
            try:
                return self.is_whole()
            except (OSError, AssertionError, ValueError):
                return False

        wait_until(whole, timeout, lambda: f"every process to serve again\n{self.first.stderr()[-3000:]}", every=0.1)

    def fill_disk(self) -> Path:
        """Leave no free byte where the log is; what to remove to heal."""
        if not self.is_tmpfs:
            raise CannotRun("a full disk needs the right to mount a tmpfs")
        ballast = self.first.data / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 65_536)
        with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x")
        return ballast

    @contextlib.contextmanager
    def no_more_memory(self, pid: int) -> Iterator[None]:
        """What the process has it may keep; whatever more it wants, the kernel refuses, and ends it."""
        groups = Path("/sys/fs/cgroup/memory")
        limit = "memory.limit_in_bytes"
        if not groups.is_dir():
            groups, limit = groups.parent, "memory.max"
        group = groups / f"cdrs-faults-{secrets.token_hex(4)}"
        try:
            group.mkdir()
            (group / limit).write_text("65536")
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise CannotRun(f"too little memory needs the right to make a memory cgroup ({error})") from error
        try:
            yield
        finally:
            with contextlib.suppress(AssertionError):  # the kernel may take its time; an empty group harms nobody
                wait_until(lambda: _removed(group), 10, "the cgroup to be empty")

    def engines(self, *words: str) -> str:
        raise CannotRun("the embedded profile has no engines")


class Distributed(System):
    """The same processes on a set of engines that this run alone uses."""

    profile = "distributed"

    def __init__(self, folder: Path, name: str, *, write_path: str, own_clock: bool = False) -> None:
        self.set = name
        super().__init__(folder, self._settings(), write_path=write_path, own_clock=own_clock)

    def _settings(self) -> dict[str, str]:
        try:
            status = json.loads(self.engines("status", "--json"))
        except (CannotRun, ValueError):
            status = {}
        if not status or status.get("pending"):
            raise CannotRun(
                f"no set of engines {self.set!r} is ready: scripts/engines up --set {self.set} "
                "(a set of its own: its servers are killed)"
            )
        urls: dict[str, str] = status["settings"]
        database = f"/cdrs_faults_{secrets.token_hex(4)}"
        return {
            **urls,
            "CDRS_STORE__URL": urlunsplit(urlsplit(urls["CDRS_STORE__URL"])._replace(path=database)),
            "CDRS_KAFKA__TOPIC": f"cdrs-faults.{secrets.token_hex(4)}",
            "CDRS_NODE__WINDOW": "2000",
        }

    def engines(self, *words: str) -> str:
        done = subprocess.run(
            [str(ROOT / "scripts/engines"), *words, "--set", self.set], capture_output=True, text=True, timeout=180,
            check=False,
        )  # fmt: skip
        if done.returncode not in (0, 3):
            raise CannotRun(f"scripts/engines {' '.join(words)}: {done.stderr.strip()[-300:]}")
        return done.stdout.strip()


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _build_clock(folder: Path) -> Path | None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


class Watcher(threading.Thread):
    """Looks at the registry's picture through a gateway, all the time, and writes down every change of a state."""

    def __init__(self, port: int, folder: Path | None) -> None:
        super().__init__(name="watcher", daemon=True)
        self.history = Actor("watcher", folder)
        self._port = port
        self._stopping = threading.Event()

    def run(self) -> None:
        states: dict[str, str] = {}
        while not self._stopping.wait(0.03):
            try:
                answer = request(self._port, "GET", "/v1/nodes", headers={"accept": "application/json"}, timeout=2)
                nodes: list[dict[str, Any]] = answer.json()["nodes"] if answer.status == 200 else []
            except (OSError, ValueError):
                continue
            for node in nodes:
                key = f"{node['id']}/{node['incarnation']}"
                if node["role"] == "node" and states.get(key, node["state"]) != node["state"]:
                    self.history.write("told", target=node["id"], state=node["state"], t=time.monotonic_ns())
                states[key] = node["state"]

    def stop(self) -> None:
        self._stopping.set()
        self.join(5)
        self.history.close()


def kill(system: System, name: str) -> None:
    system.signal(name, signal.SIGKILL)
