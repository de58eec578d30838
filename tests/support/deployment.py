"""cdrs as it is deployed: gateways behind HAProxy and nodes, each a process of its own that can be replaced by a fresh
one, on engines or on one data folder."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cdrs_process import CdrsProcess, Door, free_port, wait_until
from haproxy import HaProxy

_READ_ONLY = """
set -e
while read -r _ point _; do
  case $point in
    /dev/shm) ;;
    /proc | /proc/* | /sys | /sys/* | /dev | /dev/*) continue ;;
  esac
  mount -o remount,bind,ro "$point"
done </proc/self/mounts
exec "$@"
"""


def read_only() -> list[str]:
    """The words before a command that take from it every place to write to: all file systems are read-only to it.

    Skips the test where this user may not do that."""
    flags = ["--mount", "--propagation", "private"] if os.getuid() == 0 else ["--mount", "--map-root-user"]
    words = ["unshare", *flags, "sh", "-c", _READ_ONLY, "sh"]
    try:
        tried = subprocess.run([*words, "sh", "-c", "! touch /tmp/x"], capture_output=True, timeout=10, check=False)
    except OSError as error:
        pytest.skip(f"no read-only root can be made here: {error}")
    if tried.returncode:
        pytest.skip(f"no read-only root can be made here: {tried.stderr.decode()[-200:]}")
    return words


@dataclass
class Deployment(Door):
    """Two gateways behind HAProxy, and nodes. Ends with its block."""

    folder: Path
    env: Mapping[str, str]
    node_count: int = 3
    prefix: Sequence[str] = ()
    """Words before the commands of gateways and nodes."""
    args: Sequence[str] = ()
    """Words behind them."""
    gateways: list[CdrsProcess] = field(default_factory=list)
    node_list: list[CdrsProcess] = field(default_factory=list)
    gone: list[CdrsProcess] = field(default_factory=list)
    _started: int = 0

    def __post_init__(self) -> None:
        ports = [free_port(), free_port()]
        self.haproxy = HaProxy(self.folder / "haproxy", ports)
        self.port = self.haproxy.port
        self.gateways = [self._new("gateway", port) for port in ports]
        self.node_list = [self._new("node", 0) for _ in range(self.node_count)]

    def _new(self, role: str, port: int) -> CdrsProcess:
        """A process with an empty folder for whatever it may want to write."""
        self._started += 1
        folder = self.folder / f"{role}-{self._started}"
        (folder / "home").mkdir(parents=True)
        env = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "home"), **self.env}
        return CdrsProcess(folder, self.args, role=role, port=port or free_port(), env=env, prefix=self.prefix)

    @property
    def processes(self) -> list[CdrsProcess]:
        return [*self.gateways, *self.node_list]

    def start(self) -> Deployment:
        try:
            for each in self.processes:
                each.start(wait=False)
            self.haproxy.start()
            for each in self.processes:
                each.wait_ready(60)
            wait_until(lambda: self.haproxy.ready(2), 20, lambda: f"HAProxy sees two gateways: {self.haproxy.log()}")
        except BaseException:
            self.stop()
            raise
        return self

    def kill_node(self, index: int) -> None:
        """SIGKILL a node and start a fresh one, which need not be up yet when this returns."""
        self.node_list[index].kill()
        self._replace(self.node_list, index).start(wait=False)

    def replace_node(self, index: int, number: int = signal.SIGTERM) -> None:
        """End a node, then start a fresh one elsewhere, and wait until it serves."""
        self._end(self.node_list[index], number)
        self._replace(self.node_list, index).start(timeout=60)

    def replace_gateway(self, index: int, number: int = signal.SIGTERM) -> None:
        """End a gateway, then start a fresh one on another port, tell HAProxy, and wait until it gets requests."""
        self._end(self.gateways[index], number)
        fresh = self._replace(self.gateways, index).start(timeout=60)
        self.haproxy.move(index + 1, fresh.port)
        wait_until(lambda: self.haproxy.ready(2), 20, lambda: f"HAProxy sees the new one: {self.haproxy.log()}")

    def _end(self, process: CdrsProcess, number: int) -> None:
        process.signal(number)
        code = process.wait(30)
        assert code == (0 if number == signal.SIGTERM else -number), f"{code}: {process.stderr()[-3000:]}"

    def _replace(self, those: list[CdrsProcess], index: int) -> CdrsProcess:
        self.gone.append(those[index])
        those[index] = self._new(those[index].role, 0)
        return those[index]

    def check_alive(self) -> None:
        """Nothing ended that was not told to."""
        for each in self.processes:
            assert each.process is not None
            assert each.process.poll() is None, f"{each.folder.name} ended: {each.stderr()[-3000:]}"

    def wrote(self) -> list[Path]:
        """What gateways and nodes left on the disk, besides the output that the test itself collects."""
        found: list[Path] = []
        for each in [*self.processes, *self.gone]:
            found += [p for p in each.folder.rglob("*") if p.name not in {"stdout.txt", "stderr.txt", "home"}]
        return found

    def stop(self) -> None:
        for each in self.processes:
            each.stop()
        self.haproxy.stop()

    def __enter__(self) -> Deployment:
        return self if self.haproxy.is_running else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
