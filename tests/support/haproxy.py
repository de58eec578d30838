"""HAProxy as users run it: the shipped ``ops/haproxy/haproxy.cfg`` with its environment, and Debian's program."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from cdrs_process import ROOT, Door, environment, free_port, wait_until

CONFIGURATION = ROOT / "ops" / "haproxy" / "haproxy.cfg"
BACKENDS = {"gateways": ("gateway", "unready"), "streams": ("gateway", "unready")}
"""Backend → the servers that stand for a gateway in it, without the number."""


def haproxy_program() -> str:
    """Where HAProxy is; skips the test where it is not."""
    found = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip("no haproxy here: apt-get install haproxy")
    return found


class HaProxy(Door):
    """The door of two gateways. Ends with its block."""

    def __init__(self, folder: Path, gateways: Sequence[int]) -> None:
        self._program = haproxy_program()
        self._folder = folder
        self._gateways = list(gateways)
        self._sockets = Path(tempfile.mkdtemp(prefix="haproxy-"))  # short: a socket's path has at most 107 bytes
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.stats_port = free_port()

    def variables(self) -> dict[str, str]:
        first, second = self._gateways
        return {
            "HAPROXY_BIND": f"127.0.0.1:{self.port}",
            "HAPROXY_STATS_BIND": f"127.0.0.1:{self.stats_port}",
            "CDRS_GATEWAY_1": f"127.0.0.1:{first}",
            "CDRS_GATEWAY_2": f"127.0.0.1:{second}",
        }

    def start(self) -> HaProxy:
        self._folder.mkdir(parents=True, exist_ok=True)
        env = environment() | self.variables()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-W", "-S", str(self._api), "-f", str(CONFIGURATION)],
                cwd=self._folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        wait_until(self._listens, 10, lambda: f"HAProxy: {self.log()}")
        return self

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            socket.create_connection(("127.0.0.1", self.stats_port), timeout=1).close()
            return "Uptime:" in self.ask("show info")
        except OSError:
            return False

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ready(self, count: int) -> bool:
        """Whether so many gateways pass their checks."""
        rows = [line.split() for line in self.ask("show servers state gateways").splitlines()[2:]]
        return sum(row[5] == "2" for row in rows if len(row) > 5 and row[3].startswith("gateway-")) == count

    def move(self, number: int, port: int) -> None:
        """Gateway ``number`` (1 or 2) is at another port now, for whatever comes from here on."""
        for backend, servers in BACKENDS.items():
            for server in servers:
                said = self.ask(f"set server {backend}/{server}-{number} addr 127.0.0.1 port {port}")
                assert "port changed" in said, said
        self._gateways[number - 1] = port

    def ask(self, command: str) -> str:
        """One command on the runtime API of the worker."""
        with socket.socket(socket.AF_UNIX) as api:
            api.settimeout(5)
            api.connect(str(self._api))
            api.sendall(f"@1 {command}\n".encode())
            api.shutdown(socket.SHUT_WR)
            said = b""
            while piece := api.recv(65_536):
                said += piece
        return said.decode()

    @property
    def _api(self) -> Path:
        return self._sockets / "api"

    @property
    def _log(self) -> Path:
        return self._folder / "haproxy.log"

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-3000:] if self._log.exists() else ""

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(5)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def __enter__(self) -> HaProxy:
        return self if self._process is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
