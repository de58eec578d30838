"""A gateway is killed with 2,000 streams; all come back to the other one, which serves them from what it has. As often
as ``CDRS_TEST_GATEWAY_KILLS`` says: the one that was killed is started again, and is the other one next time."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cdrs_process import CdrsProcess, request
from engine_nodes import engine_variables
from sse_socket import BodyReader, EventStreamParser
from write_paths import each_path

KILLS = int(os.environ.get("CDRS_TEST_GATEWAY_KILLS", "1"))
pytestmark = [pytest.mark.timeout(150 + 60 * KILLS), pytest.mark.slow]

STREAMS = 2_000
NAMES = 7
PER_SECOND = 50
QUESTIONS = 50
"""For history, which the survivor may put to its nodes for all of them together."""
BACK_WITHIN = 15.0
"""Seconds until the last one is back; 5 are the aim, on a machine that does nothing else."""


class Client:
    """One browser: follows, and comes back by its last id after the delay it was told, jittered as it was."""

    def __init__(self, ports: list[int]) -> None:
        self.ports = ports
        self.seen = 0
        self.wrong: list[str] = []
        self.last_id = b""
        self.gaps = 0
        self.connected = 0
        self.caught_up = 0
        self._next = list(range(NAMES))
        """Per stream the number that has to follow."""

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
                        self._take(int(block.data.rpartition(b'"n":')[2].rstrip(b"}")))
            raise ConnectionResetError
        finally:
            writer.close()

    def _take(self, number: int) -> None:
        wanted = self._next[number % NAMES]
        if number != wanted:
            self.wrong.append(f"{number} instead of {wanted}")
        self._next[number % NAMES] = number + NAMES
        self.seen += 1


class Publisher:
    """Posts at a steady pace to one gateway, while it may."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.sent = 0
        self.may = asyncio.Event()
        self._posting = asyncio.Lock()

    async def pause(self) -> None:
        """From now on nothing is under way."""
        self.may.clear()
        async with self._posting:
            pass

    async def run(self) -> None:
        due = time.monotonic()
        while True:
            if not self.may.is_set():
                await self.may.wait()
                due = time.monotonic()
            async with self._posting:
                await self._post()
            due += 1 / PER_SECOND
            await asyncio.sleep(max(due - time.monotonic(), 0))

    async def _post(self) -> None:
        path, body = f"/v1/streams/kill.s{self.sent % NAMES}/events", b'{"n":%d}' % self.sent
        answer = await asyncio.to_thread(request, self.port, "POST", path, body, {"content-type": "application/json"})
        assert answer.status == 201, answer
        self.sent += 1


@dataclass
class Scene:
    """Two gateways, all clients at one of them, and what was measured."""

    gateways: list[CdrsProcess]
    clients: Sequence[Client]
    publisher: Publisher
    took: list[float] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)

    async def kill(self) -> None:
        """Kill the first gateway, under load; until all clients are back at the other one and have seen everything,
        and the killed one is the second."""
        victim, survivor = self.gateways
        publisher, clients = self.publisher, self.clients
        publisher.port = survivor.port
        publisher.may.set()
        goal = publisher.sent + PER_SECOND
        await until(lambda: all(client.seen >= goal for client in clients), 60)
        before = await asyncio.to_thread(metrics, survivor.port)
        turn = clients[0].connected
        os.kill(victim.pid, signal.SIGKILL)
        killed = time.monotonic()
        await until(lambda: all(client.caught_up > turn for client in clients), 60)
        self.took.append(time.monotonic() - killed)
        await publisher.pause()
        await until(lambda: all(client.seen >= publisher.sent for client in clients), 30)
        after = await asyncio.to_thread(metrics, survivor.port)
        self.asked.append(after["cdrs_history_questions_total"] - before["cdrs_history_questions_total"])
        await asyncio.to_thread(victim.start)
        self.gateways = [survivor, victim]


async def until(condition: Callable[[], bool], timeout: float) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.05)


def metrics(port: int) -> Mapping[str, float]:
    text = request(port, "GET", "/metrics").body.decode()
    rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in rows}


@each_path
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
        gateways = processes[1:]
        clients = [Client([each.port for each in gateways]) for _ in range(STREAMS)]
        scene = Scene(gateways, clients, Publisher(gateways[1].port))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.run()) for client in clients]
            await until(lambda: all(client.caught_up for client in clients), 60)
            tasks.append(group.create_task(scene.publisher.run()))
            for _ in range(KILLS):
                await scene.kill()
            for task in tasks:
                task.cancel()
        print(
            f"{STREAMS} streams back and caught up {statistics.median(scene.took):.2f} s after the kill, "
            f"{max(scene.took):.2f} s at most of {KILLS}; {max(scene.asked):.0f} questions for history at most; "
            f"each: {' '.join(f'{took:.1f}' for took in scene.took)}"
        )
        assert max(scene.took) <= BACK_WITHIN
        assert max(scene.asked) <= QUESTIONS
        wrong = [each for client in clients for each in client.wrong]
        assert not wrong, f"lost, repeated or out of order: {wrong[:5]}"
        assert {client.seen for client in clients} == {scene.publisher.sent}
        assert not any(client.gaps for client in clients)
        assert {client.connected for client in clients} == {KILLS + 1}
