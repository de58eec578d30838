"""Single POSTs at a steady rate; prints how long their receipts took, as JSON.

``python pace_load.py PORT RATE SECONDS PREFIX SUFFIX``. Counted from the moment at which a request was due, so a server
that falls behind cannot hide it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop
from fan_load import Producer

CONNECTIONS = 64
STREAMS = 16
WARM = 2.0
"""Seconds that are not counted."""
PAD = b"x" * 140


async def post(producer: Producer, number: int, due: float, path: str, times: list[float]) -> None:
    body = b'{"n":%d,"pad":"%s"}' % (number, PAD)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    producer.transport.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await asyncio.wait_for(producer.answered.wait(), 30)
    producer.answered.clear()
    times.append((asyncio.get_running_loop().time() - due) * 1e3)


async def main(port: int, rate: float, seconds: float, prefix: str, suffix: str) -> None:
    loop = asyncio.get_running_loop()
    idle: asyncio.Queue[Producer] = asyncio.Queue()
    made: list[Producer] = []
    for _ in range(CONNECTIONS):
        made.append((await loop.create_connection(Producer, "127.0.0.1", port))[1])
        idle.put_nowait(made[-1])
    times: list[float] = []
    warm = int(rate * WARM)
    started = loop.time() + 0.2

    async def one(number: int, due: float) -> None:
        producer = await idle.get()
        taken = times if number >= warm else []
        await post(producer, number, due, f"{prefix}{number % STREAMS}{suffix}", taken)
        idle.put_nowait(producer)

    async with asyncio.TaskGroup() as group:
        for number in range(warm + int(rate * seconds)):
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - loop.time()))
            group.create_task(one(number, due))
    times.sort()
    count = len(times)
    print(json.dumps({
        "posts": count, "statuses": sorted({status.decode() for each in made for status in each.statuses}),
        "p50_ms": times[count // 2], "p99_ms": times[int(count * 0.99)], "max_ms": times[-1],
        "ended": time.time(),
    }))  # fmt: skip


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5]))
