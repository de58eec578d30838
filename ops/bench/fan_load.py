"""Many subscribers in one process, and a paced producer beside them. Prints what it measured as JSON.

``python fan_load.py latency PORT SUBSCRIBERS RATE SECONDS EVENTS_PATH POST_PATH``
``python fan_load.py idle PORT SUBSCRIBERS EVENTS_PATH``: says ``open`` on stdout once all are, then waits for
the end of its standard input.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any

import uvloop

STAMP = re.compile(rb'"stamp":(\d+)')


class Follower(asyncio.Protocol):
    """A subscriber that looks for stamps only: cheap, so that the server is measured and not the loader."""

    def __init__(self, path: str, port: int, delays: list[float]) -> None:
        self._request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n\r\n".encode()
        self._delays = delays
        self._rest = b""
        self.opened = asyncio.get_running_loop().create_future()
        self.count = 0
        self.lost = False

    def connection_made(self, transport: Any) -> None:
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if not self.opened.done():
            self._rest += data
            if b"\nid:" in self._rest:
                assert self._rest.startswith(b"HTTP/1.1 200"), self._rest[:100]
                self.opened.set_result(None)
                self._rest = b""
            return
        if b"\n\n" not in data and b"\r\n\r\n" not in data:
            self._rest += data
            return
        whole, self._rest = self._rest + data, b""
        for match in STAMP.finditer(whole):
            self.count += 1
            self._delays.append((now - int(match[1])) / 1e6)

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost = True
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("the server ended it"))


class Producer(asyncio.Protocol):
    """One keep-alive connection; a request under way at a time."""

    def __init__(self) -> None:
        self.answered = asyncio.Event()
        self.statuses: dict[bytes, int] = {}
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
            return
        self.statuses[head[9:12]] = self.statuses.get(head[9:12], 0) + 1
        self._buffer = b""
        self.answered.set()


async def follow(port: int, subscribers: int, path: str, delays: list[float]) -> list[Follower]:
    loop = asyncio.get_running_loop()
    followers = []
    for _ in range(subscribers):
        _, follower = await loop.create_connection(lambda: Follower(path, port, delays), "127.0.0.1", port)
        followers.append(follower)
        await asyncio.wait_for(follower.opened, 30)
    return followers


async def latency(port: int, subscribers: int, rate: float, seconds: float, path: str, post: str) -> None:
    delays: list[float] = []
    followers = await follow(port, subscribers, path, delays)
    loop = asyncio.get_running_loop()
    producers = [(await loop.create_connection(Producer, "127.0.0.1", port))[1] for _ in range(4)]
    for producer in producers:
        producer.answered.set()
    total = int(rate * seconds)
    started = loop.time() + 0.2
    warm = int(rate)  # the first second is not counted
    for number in range(total + warm):
        await asyncio.sleep(max(0.0, started + number / rate - loop.time()))
        producer = producers[number % len(producers)]
        await producer.answered.wait()
        producer.answered.clear()
        if number == warm:
            await drained(followers, warm)
            delays.clear()
        stamp = time.monotonic_ns()
        body = b'{"n":%d,"stamp":%d,"pad":"%s"}' % (number, stamp, b"x" * 140)
        head = f"POST {post} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        producer.transport.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await drained(followers, total + warm)
    delays.sort()
    count = len(delays)
    print(json.dumps({
        "deliveries": count, "lost": sum(f.lost for f in followers),
        "expected": total * subscribers, "statuses": sorted({s.decode() for p in producers for s in p.statuses}),
        "p50_ms": delays[count // 2], "p99_ms": delays[int(count * 0.99)], "p999_ms": delays[int(count * 0.999)],
        "max_ms": delays[-1],
    }))  # fmt: skip


async def drained(followers: list[Follower], count: int) -> None:
    deadline = time.monotonic() + 10
    while any(f.count < count for f in followers) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)


async def idle(port: int, subscribers: int, path: str) -> None:
    followers = await follow(port, subscribers, path, [])
    print("open", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(json.dumps({"lost": sum(f.lost for f in followers)}), flush=True)


if __name__ == "__main__":
    mode, port_text, subscribers_text, *rest = sys.argv[1:]
    if mode == "latency":
        uvloop.run(latency(int(port_text), int(subscribers_text), float(rest[0]), float(rest[1]), rest[2], rest[3]))
    else:
        uvloop.run(idle(int(port_text), int(subscribers_text), rest[0]))
