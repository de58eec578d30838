"""A sampling profile of our servers under load, by py-spy: ``scripts/bench NAME --profile``.

Every server of ours that a benchmark starts is sampled from ready to stopped, its children included; threads that wait
do not count. What an extension does (uvloop, SQLite, the kernel below them) is with the Python function that called it.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MISSING = "no profile: py-spy is not on PATH"
TOP = 40
HZ = 100
WRITES = 30.0
"""Seconds that py-spy may take to write what it has."""
WAITING = "_worker (concurrent/futures/thread.py)"
"""A pool's thread without work: it waits in C, which py-spy takes for work."""
_LINE = re.compile(r":\d+\)$")

Stacks = Counter[tuple[str, ...]]
_found: Stacks | None = None
"""Stack, outermost function first → samples; None while no profile is wanted."""


def begin() -> None:
    """Sample the servers that are started from now on."""
    global _found  # noqa: PLW0603 -- one profile for the process, as servers are started in many places
    _found = Stacks()


def is_possible() -> bool:
    return shutil.which("py-spy") is not None


@contextmanager
def sampled(pid: int) -> Iterator[None]:
    """Sample a process meanwhile, where that was asked for."""
    if _found is None or not is_possible():
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stacks.txt"
        argv = ["py-spy", "record", "--subprocesses", "--rate", str(HZ), "--format", "raw", "--output", str(path)]
        process = subprocess.Popen(
            [*argv, "--pid", str(pid)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)  # it writes, and ends
            try:
                _, said = process.communicate(timeout=WRITES)
            except subprocess.TimeoutExpired:
                process.kill()
                _, said = process.communicate()
            if path.exists():
                _found.update(stacks(path.read_text()))
            else:
                print(f"no profile of a server: {said.strip()[-300:]}", file=sys.stderr)


def stacks(collapsed: str) -> Stacks:
    """py-spy's raw format: ``outer (file:line);inner (file:line) SAMPLES``. Lines of one function are one."""
    found = Stacks()
    for line in collapsed.splitlines():
        frames, _, samples = line.rpartition(" ")
        if not samples.isdigit():
            continue
        functions = [function(frame) for frame in frames.split(";") if not frame.startswith(("process ", "thread "))]
        if functions and functions[-1] != WAITING:
            found[tuple(functions)] += int(samples)
    return found


def function(frame: str) -> str:
    """Without its line, and with its file as the project or the package names it."""
    name, opened, file = _LINE.sub(")", frame).rpartition(" (")
    if not opened:
        return frame
    file = file.removesuffix(")").removeprefix(f"{ROOT}/").rpartition("site-packages/")[2]
    return f"{name} ({'/'.join(file.split('/')[-2:]) if file.startswith('/') else file})"


def table(title: str) -> str:
    """The functions with the most samples: by themselves, and with all that they called. Empty where there are none."""
    if not _found:
        return ""
    whole = sum(_found.values())
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for stack, samples in _found.items():
        own[stack[-1]] += samples
        for each in set(stack):
            total[each] += samples
    parts = [f"{title}\n{whole} samples of our servers' Python, {HZ} a second while they run\n"]
    for what, by in (("self", own), ("total", total)):
        lines = (f"{samples / whole:7.1%}  {name}\n" for name, samples in by.most_common(TOP))
        parts.append(f"\n{what:>7}  function\n{''.join(lines)}")
    return "".join(parts)
