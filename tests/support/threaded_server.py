"""The whole product in a thread of this process, on a loop of choice, so that a test can look inside."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from cdrs_process import request

from services.launcher import run_all_in_one
from shared.settings import GatewaySettings, Settings, SseSettings

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}

PAD = "the same in each of them"


@dataclass
class ThreadedServer:
    """A running server."""

    port: int
    loop: asyncio.AbstractEventLoop
    stop: asyncio.Event
    thread: threading.Thread

    def tasks(self) -> list[str]:
        """Names of what runs in it."""
        return sorted(task.get_name() for task in asyncio.all_tasks(self.loop))

    def drain(self) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)


@contextmanager
def threaded_server(folder: Path, *, loop: str, **sse: Any) -> Iterator[ThreadedServer]:
    """Serve until the block ends; the thread must have ended well by then."""
    settings = Settings(data=folder, sse=SseSettings(**sse), gateway=GatewaySettings(port=0, drain_delay=0))
    started: list[ThreadedServer] = []
    failed: list[BaseException] = []
    up = threading.Event()

    async def serve() -> None:
        stop = asyncio.Event()

        async def on_ready(url: str) -> None:
            port = int(url.rpartition(":")[2])
            started.append(ThreadedServer(port, asyncio.get_running_loop(), stop, thread))
            up.set()

        await run_all_in_one(settings, stop, on_ready)

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                runner.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=run, name="server", daemon=True)
    thread.start()
    assert up.wait(20)
    try:
        assert started, failed
        yield started[0]
    finally:
        if started and thread.is_alive():
            started[0].drain()
        thread.join(20)
        assert not thread.is_alive()
        assert not failed, failed


def publish(server: ThreadedServer, stream: str, count: int, *, first: int = 0, pad: str = PAD) -> None:
    """Store numbered events in one request: ``{"n": first, "pad": pad}`` and on."""
    lines = "\n".join(f'{{"n":{n},"pad":"{pad}"}}' for n in range(first, first + count)).encode()
    path = f"/v1/streams/{stream}/events?receipts=errors"
    answer = request(server.port, "POST", path, lines, {"content-type": "application/x-ndjson"})
    assert json.loads(answer.body.splitlines()[-1])["summary"]["stored"] == count


def metric(server: ThreadedServer, name: str) -> float:
    """Sum of the samples whose lines begin so."""
    text = request(server.port, "GET", "/metrics").body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))
