"""The product as a user starts it: `cdrs up ...` in a folder of its own, watched from outside."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parents[2]
WRITE_PATHS = ("fast", "portable")
PORTS = range(22_000, 32_000)
"""Above those of the sets of engines, below those the kernel gives to outgoing connections."""


def command() -> list[str]:
    """The installed console script beside this interpreter, else the module."""
    script = Path(sys.executable).with_name("cdrs")
    return [str(script)] if script.exists() else [sys.executable, "-m", "services.cli.main"]


def pinned(cpus: set[int] | None) -> list[str]:
    """The words before a command that keep it on some cores."""
    if not cpus or shutil.which("taskset") is None:
        return []
    return ["taskset", "-c", ",".join(map(str, sorted(cpus)))]


def free_port() -> int:
    """A loopback port nobody listens on, and which no outgoing connection gets while a server that had it is down."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, without settings of ours that would leak in."""
    dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}  # a start would compile everything anew
    env = {k: v for k, v in os.environ.items() if not k.startswith("CDRS_") and k not in dropped}
    env.update(NO_COLOR="1", COLUMNS="200")
    env.update(extra or {})
    return env


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout: float = 15.0,
) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def wait_until(condition: Any, timeout: float, what: str | Callable[[], str], *, every: float = 0.02) -> Any:
    """Poll until ``condition()`` is true, and give what it gave. ``what`` may be asked for only when it failed."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout:g} s for {what if isinstance(what, str) else what()}")
        time.sleep(every)


def children(pid: int) -> list[int]:
    """Pids of the direct children, oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            fields = stat.rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append((int(fields[19]), int(entry.name)))
    return [child for _, child in sorted(found)]


def command_line(pid: int) -> list[str]:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode().split("\0")[:-1]
    except OSError:
        return []


class Door:
    """Where clients come in."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, body: bytes | None = None, **kwargs: Any) -> Answer:
        return request(self.port, method, path, body, **kwargs)

    def publish(self, stream: str, payload: bytes, **headers: str) -> Answer:
        """POST one JSON payload."""
        named = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return self.request("POST", f"/v1/streams/{stream}/events", payload, headers=named)

    def nodes(self) -> list[dict[str, Any]]:
        """The registry's picture of node processes."""
        answer = self.request("GET", "/v1/nodes", headers={"accept": "application/json"})
        assert answer.status == 200, answer
        return [item for item in answer.json()["nodes"] if item["role"] == "node"]


@dataclass
class CdrsProcess(Door):
    """`cdrs up` and what belongs to it. Nothing of it survives the end of the test."""

    write_path: ClassVar[str] = "auto"
    """That of all of them; the fixture of this name sets it."""

    folder: Path
    args: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    env: Mapping[str, str] | None = None
    role: str = "up"
    cpus: set[int] | None = None
    prefix: Sequence[str] = ()
    """Words before the command."""
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, *, wait: bool = True, timeout: float = 30.0) -> CdrsProcess:
        """Start it; wait for /readyz to say 200."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.starts += 1
        serve = [self.role, "--port", str(self.port), "--data", str(self.data), *self.args]
        argv = [*self.prefix, *pinned(self.cpus), *command(), *serve]
        with self.stdout_path.open("ab") as out, self.stderr_path.open("ab") as err:
            self.process = subprocess.Popen(
                argv, cwd=self.folder, env=self._environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                start_new_session=True,
            )  # fmt: skip
        if wait:
            self.wait_ready(timeout)
        return self

    def _environment(self) -> dict[str, str]:
        return environment({"CDRS_SSE__WRITE_PATH": self.write_path, **(self.env or {})})

    def wait_ready(self, timeout: float = 30.0) -> None:
        wait_until(self.is_ready, timeout, f"/readyz of {self.url}\n{self.stderr()[-4000:]}")

    def is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"it ended with {self.process.returncode}:\n{self.stderr()[-4000:]}")
        try:
            return request(self.port, "GET", "/readyz", timeout=2).status == 200
        except (OSError, http.client.HTTPException):
            return False

    @property
    def stdout_path(self) -> Path:
        return self.folder / "stdout.txt"

    @property
    def stderr_path(self) -> Path:
        return self.folder / "stderr.txt"

    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace") if self.stderr_path.exists() else ""

    def output(self) -> str:
        """Everything it said, on either side."""
        return (self.stdout_path.read_text(errors="replace") if self.stdout_path.exists() else "") + self.stderr()

    def pids(self, role: str) -> list[int]:
        """Running children whose command line names the role: ``gateway`` or ``node``."""
        return [pid for pid in children(self.pid) if role in command_line(pid)]

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        assert self.process is not None
        return self.process.wait(timeout)

    def kill(self) -> None:
        """SIGKILL of the process that was started, and of nothing else."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        """The end of the test: SIGTERM, then SIGKILL for it and for every child that is left."""
        if self.process is None:
            return
        known = {child: command_line(child) for child in children(self.pid)}
        for pid in known:
            _signal(pid, signal.SIGCONT)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait(10)
        for pid, line in known.items():
            if line and command_line(pid) == line:
                _signal(pid, signal.SIGKILL)

    def __enter__(self) -> CdrsProcess:
        return self if self.process is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def client(port: int, *args: str, timeout: float = 120.0, env: Mapping[str, str] | None = None) -> Finished:
    """Run a client command of the CLI to its end."""
    started = time.monotonic()
    done = subprocess.run(
        [*command(), *args], env=client_environment(port, env), stdin=subprocess.DEVNULL, capture_output=True,
        timeout=timeout, check=False,
    )  # fmt: skip
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode(), time.monotonic() - started)


def client_environment(port: int, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    return environment({"CDRS_URL": f"http://127.0.0.1:{port}", **(extra or {})})


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def text(self) -> str:
        return self.out + self.err
