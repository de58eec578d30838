"""The loader where wrk is not installed: raw sockets under uvloop. Prints requests, seconds, p50, p99 and max as JSON.

``python post_load.py PORT CONNECTIONS SECONDS PREFIX SUFFIX LINES``; LINES 0: one event as plain JSON, else NDJSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import uvloop

BODY = (
    b'{"user":"GELongstreet","page":"Talk:Oswald Tilghman","comment":"added project","delta":36,"added":36,'
    b'"deleted":0,"isRobot":false,"isNew":false,"namespace":"Talk","pad":"' + b"x" * 36 + b'"}'
)


class Poster(asyncio.Protocol):
    """One keep-alive connection with one request under way."""

    def __init__(self, requests: list[bytes], until: float, times: list[float], bad: list[bytes]) -> None:
        self._requests, self._until, self._times, self._bad = requests, until, times, bad
        self._at, self._sent, self._buffer = 0, 0.0, b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        if self._sent >= self._until:
            self._transport.close()
            return
        self._at = (self._at + 1) % len(self._requests)
        self._transport.write(self._requests[self._at])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        fields = head.lower()
        if b"transfer-encoding: chunked" in fields:
            if not body.endswith(b"0\r\n\r\n"):
                return
        elif len(body) < int(fields.split(b"content-length:")[1].split(b"\r\n")[0]):
            return
        if not head.startswith(b"HTTP/1.1 2"):
            self._bad.append(head[:40])
        self._buffer = b""
        self._times.append(time.perf_counter() - self._sent)
        self._send()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def main(port: int, connections: int, seconds: float, prefix: str, suffix: str, lines: int) -> None:
    kind, body = ("x-ndjson", (BODY + b"\n") * lines) if lines else ("json", BODY)
    head = "POST {}s{}{} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/{}\r\nContent-Length: {}\r\n\r\n"
    requests = [head.format(prefix, i, suffix, kind, len(body)).encode() + body for i in range(1, 17)]
    times: list[float] = []
    bad: list[bytes] = []
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    posters = [
        (await loop.create_connection(lambda: Poster(requests, started + seconds, times, bad), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(poster.done for poster in posters))
    took = time.perf_counter() - started
    times.sort()
    print(json.dumps({
        "requests": len(times), "seconds": took, "bad": len(bad),
        "p50_ms": times[len(times) // 2] * 1e3, "p99_ms": times[int(len(times) * 0.99)] * 1e3,
        "max_ms": times[-1] * 1e3,
    }))  # fmt: skip


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5], int(sys.argv[6])))
