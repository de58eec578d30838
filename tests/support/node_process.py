"""A node in a process of its own, over a model log: something to kill and to stop. Prints its address, then serves."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from model_log import ModelLog, ModelStore

from cdrs.api import NodeApi
from cdrs.node import Node
from cdrs.server import serve
from shared.clock import SystemClock
from shared.position import Epoch
from shared.settings import Settings

EPOCH = Epoch(1, 7)
HERE = Path(__file__).parent


@asynccontextmanager
async def node_process() -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Start one; yields the process and its address."""
    path = {"PYTHONPATH": f"{HERE}:{HERE.parent.parent}"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=path
    )
    assert process.stdout is not None
    try:
        url = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
        assert url, "the node did not start"
        yield process, url
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _main() -> None:
    log = ModelLog(epoch=EPOCH)
    node = Node(log, ModelStore(log), Settings(), SystemClock(), node_id="n1", incarnation="i1")
    sock = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    async with asyncio.TaskGroup() as group:
        group.create_task(node.run())
        assert await node.ready(10)
        group.create_task(serve(NodeApi(node), sock, on_started=lambda: print(url, flush=True)))


if __name__ == "__main__":
    asyncio.run(_main())
