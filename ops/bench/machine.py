"""Processes under measurement: where they run, what they use, and a baseline server beside ours."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cdrs_process import CdrsProcess, environment, free_port, pinned, request, wait_until
from sampling import sampled

HERE = Path(__file__).resolve().parent
_CPUS = sorted(os.sched_getaffinity(0))
ALL_CPUS = set(_CPUS)
SERVER_CPUS = {_CPUS[0]}
LOADER_CPUS = {_CPUS[-1]}
ROLE_CPUS = set(_CPUS[:-1]) or ALL_CPUS
"""Where the roles are processes of their own: all cores but the loader's."""
_TICK = os.sysconf("SC_CLK_TCK")


@contextmanager
def beside_the_loader() -> Iterator[None]:
    """This process, which publishes or looks itself, off the server's core meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, LOADER_CPUS)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder on a real disk (the checkout's own file system), gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="cdrs-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def our_server(
    args: Sequence[str] = (),
    *,
    cpus: set[int] | None = None,
    warm: bool = True,
    env: Mapping[str, str] | None = None,
) -> Iterator[CdrsProcess]:
    """`cdrs up` in one process on the server's core."""
    with folder() as path, CdrsProcess(path, args, env=env, cpus=cpus or SERVER_CPUS) as cdrs:
        if warm:
            for number in range(50):
                assert cdrs.publish("bench.warm", b'{"n":%d}' % number).status == 201
        with sampled(cdrs.pid):
            yield cdrs


@contextmanager
def baseline_server(*, cpus: set[int] | None = None) -> Iterator[tuple[int, int]]:
    """The plain handlers of `baseline_app` under uvicorn, as usually deployed: port and pid."""
    with _script("baseline_app.py", "/ready", cpus) as started:
        yield started


@contextmanager
def null_server(*, cpus: set[int] | None = None) -> Iterator[tuple[int, int]]:
    """`cdrs up` in one process on a log that keeps nothing: port and pid."""
    with _script("null_server.py", "/readyz", cpus) as started, sampled(started[1]):
        yield started


@contextmanager
def _script(name: str, ready: str, cpus: set[int] | None) -> Iterator[tuple[int, int]]:
    port = free_port()
    with folder() as path:
        process = subprocess.Popen(
            [*pinned(cpus or SERVER_CPUS), sys.executable, str(HERE / name), str(port), str(path)],
            env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_until(lambda: answers(port, ready), 20, name)
            yield port, process.pid
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


def answers(port: int, path: str) -> bool:
    try:
        return request(port, "GET", path, timeout=2).status == 200
    except OSError:
        return False


def rss_kib(pid: int) -> int:
    """Resident memory, proportional where pages are shared would flatter us: plain RSS."""
    status = (Path("/proc") / str(pid) / "status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])


def cpu_seconds(pid: int) -> float:
    """User and system time of the process so far."""
    fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def thread_seconds(pid: int) -> float:
    """The same from the scheduler's nanosecond clock, over all threads."""
    tasks = (Path("/proc") / str(pid) / "task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def cpu_share(pid: int, seconds: float) -> float:
    """Share of one core over the next ``seconds``."""
    before, at = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / (time.monotonic() - at)


def ended_seconds() -> float:
    """User and system time of this process's children that have ended, loaders for instance."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fsync_ms(path: Path) -> float:
    """Median time of one fdatasync of 4 KiB in this folder: what durability costs here."""
    file = os.open(path / "probe", os.O_CREAT | os.O_WRONLY)
    times = []
    try:
        for _ in range(100):
            os.write(file, b"x" * 4096)
            started = time.perf_counter()
            os.fdatasync(file)
            times.append(time.perf_counter() - started)
    finally:
        os.close(file)
        (path / "probe").unlink()
    return statistics.median(times) * 1e3


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
