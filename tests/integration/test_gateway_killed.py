"""A gateway is killed with 2,000 streams; all come back to the other one, which serves them from what it has."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from cdrs_process import CdrsProcess, request
from engine_nodes import engine_variables
from sse_socket import BodyReader, EventStreamParser

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]

STREAMS = 2_000
PER_SECOND = 50
QUESTIONS = 50
"""For history, which the survivor may put to its nodes for all of them together."""


class Client:
    """One browser: follows, and comes back by its last id after the delay it was told, jittered as it was."""

    def __init__(self, ports: list[int]) -> None:
        self.ports = ports
        self.seen: list[int] = []
        self.last_id = b""
        self.gaps = 0
        self.connected = 0
        self.caught_up = 0

    async def run(self) -> None:
        while True:
            try:
                await self._follow(self.ports[0])
            except OSError:
                self.ports = self.ports[1:] + self.ports[:1]
            await asyncio.sleep(random.uniform(0.75, 2.25))

    async def _follow(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            resume = f"Last-Event-ID: {self.last_id.decode()}\r\n" if self.last_id else ""
            head = f"GET /v1/events?stream=kill.> HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n{resume}\r\n"
            writer.write(head.encode())
            self.connected += 1
            body, parser = BodyReader(), EventStreamParser(self.last_id)
            while received := await reader.read(65_536):
                for block in parser.feed(body.feed(received)):
                    self.last_id = block.id
                    if block.event == b"cdrs.caught-up":
                        self.caught_up = self.connected
                    elif block.event == b"cdrs.gap":
                        self.gaps += 1
                    elif not block.is_control:
                        self.seen.append(int(block.data.rpartition(b'"n":')[2].rstrip(b"}")))
            raise ConnectionResetError
        finally:
            writer.close()


async def publish(port: int, sent: list[int]) -> None:
    due = time.monotonic()
    while True:
        body = b'{"n":%d}' % len(sent)
        stream = f"kill.s{len(sent) % 7}"
        answer = await asyncio.to_thread(
            request, port, "POST", f"/v1/streams/{stream}/events", body, {"content-type": "application/json"}
        )
        assert answer.status == 201, answer
        sent.append(len(sent))
        due += 1 / PER_SECOND
        await asyncio.sleep(max(due - time.monotonic(), 0))


def metrics(port: int) -> Mapping[str, float]:
    text = request(port, "GET", "/metrics").body.decode()
    rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in rows}


@pytest.mark.parametrize("profile", ["embedded", "engines"])
async def test_2000_streams_of_a_killed_gateway_come_back_and_miss_nothing(tmp_path: Path, profile: str) -> None:
    async with AsyncExitStack() as stack:
        env = await stack.enter_async_context(engine_variables()) if profile == "engines" else {}
        data = [] if env else ["--data", str(tmp_path / "data")]
        names = ("node", "gateway", "gateway")
        processes = [CdrsProcess(tmp_path / f"{role}-{n}", data, role=role, env=env) for n, role in enumerate(names)]
        for each in processes:
            stack.callback(each.stop)
            each.start(wait=False)
        for each in processes:
            await asyncio.to_thread(each.wait_ready)
        _, victim, survivor = processes
        clients = [Client([victim.port, survivor.port]) for _ in range(STREAMS)]
        sent: list[int] = []
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.run()) for client in clients]
            while any(client.caught_up < 1 for client in clients):
                await asyncio.sleep(0.05)
            tasks.append(group.create_task(publish(survivor.port, sent)))
            while any(len(client.seen) < 50 for client in clients):
                await asyncio.sleep(0.05)
            before = await asyncio.to_thread(metrics, survivor.port)
            os.kill(victim.pid, signal.SIGKILL)
            killed = time.monotonic()
            async with asyncio.timeout(60):
                while any(client.caught_up < 2 for client in clients):
                    await asyncio.sleep(0.05)
            took = time.monotonic() - killed
            goal = len(sent)
            async with asyncio.timeout(30):
                while any(len(client.seen) < goal for client in clients):
                    await asyncio.sleep(0.05)
            after = await asyncio.to_thread(metrics, survivor.port)
            for task in tasks:
                task.cancel()
        asked = after["cdrs_history_questions_total"] - before["cdrs_history_questions_total"]
        print(f"{STREAMS} streams back and caught up {took:.2f} s after the kill; {asked:.0f} questions for history")
        assert asked <= QUESTIONS
        for client in clients:
            assert sorted(client.seen) == list(range(len(client.seen))), "lost or repeated"
            for stream in range(7):
                mine = [number for number in client.seen if number % 7 == stream]
                assert mine == sorted(mine), "out of order"
        assert not any(client.gaps for client in clients)
        assert {client.connected for client in clients} == {2}
