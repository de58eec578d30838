"""Programs that share a log's folder with the tests, as processes of their own.

``python log_process.py write FOLDER PREFIX COUNT [CHUNK]`` appends COUNT events (0: until killed) and prints the number
of each batch's last event once it is acknowledged; ``… hold FILE`` takes the file's write lock, says ``held`` and
sleeps; ``… open FOLDER`` prints the epoch and the partitions.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import apsw
from new_events import event

from shared.backends.embedded.log import open_log
from shared.clock import SystemClock
from shared.settings import LogSettings

ROOT = Path(__file__).parents[2]
PARTITIONS = 3


def event_name(prefix: str, number: int) -> str:
    return f"{prefix}-{number}"


async def write(folder: str, prefix: str, count: str, chunk: str = "5") -> None:
    size = int(chunk)
    limit = int(count) or 2**40
    async with open_log(Path(folder), LogSettings(partitions=PARTITIONS), SystemClock()) as (log, _):
        print("ready", flush=True)
        for first in itertools.count(0, size):
            if first >= limit:
                break
            sent = [event(event_name(prefix, number)) for number in range(first, first + size)]
            await log.append(first // size % PARTITIONS, sent, base=0)
            print(first + size, flush=True)


def hold(file: str) -> None:
    db = apsw.Connection(file)
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO identities VALUES (x'00', 1)")
    print("held", flush=True)
    time.sleep(600)


async def show(folder: str) -> None:
    async with open_log(Path(folder), LogSettings(partitions=PARTITIONS), SystemClock()) as (log, _):
        print(log.epoch, log.partitions, flush=True)


@contextmanager
def program(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """One of these programs while it runs; killed at the end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}
    process = subprocess.Popen(
        [sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


@asynccontextmanager
async def running(*words: str | Path) -> AsyncIterator[subprocess.Popen[str]]:
    """The same, once it has said its first line."""
    with program(*words) as process:
        await line_of(process)
        yield process


async def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        return (await asyncio.to_thread(process.stdout.readline)).strip()


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name == "hold":
        hold(*arguments)
    else:
        asyncio.run({"write": write, "open": show}[name](*arguments))
