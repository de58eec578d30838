"""Clients that behave badly, in equal shares, until standard input ends: ``python bad_load.py PORT PATH COUNT``.

Says ``open`` once all have asked for the stream. Kinds: reads a byte a second; never reads; ends its side after the
request; goes on sending; sends the next requests ahead; resets in the middle of a frame and comes again; vanishes (its
answers are dropped: it never reads, and closes with a reset at the end).
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from contextlib import suppress

KINDS = ("byte", "deaf", "half-close", "talkative", "pipelining", "resetting")


def dial(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


async def misbehave(kind: str, port: int, request: bytes, asked: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    while True:
        sock = dial(port)
        try:
            await loop.sock_sendall(sock, request * (4 if kind == "pipelining" else 1))
            asked.set()
            await _go_on(kind, sock, loop)
        except OSError:
            await asyncio.sleep(1)
        finally:
            sock.close()


async def _go_on(kind: str, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
    if kind == "half-close":
        sock.shutdown(socket.SHUT_WR)
    for _ in range(3600):
        if kind == "byte":
            if not await loop.sock_recv(sock, 1):
                return
        elif kind == "talkative":
            await loop.sock_sendall(sock, b"x")
        elif kind == "resetting":
            await loop.sock_recv(sock, 100)
            await asyncio.sleep(2)
            return
        elif kind == "half-close" and not await loop.sock_recv(sock, 65_536):
            await asyncio.sleep(2)
            return
        await asyncio.sleep(1)


async def main(port: int, path: str, count: int) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        asked = [asyncio.Event() for _ in range(count)]
        tasks = [group.create_task(misbehave(KINDS[n % len(KINDS)], port, request, asked[n])) for n in range(count)]
        for each in asked:
            await each.wait()
        print("open", flush=True)
        await loop.run_in_executor(None, sys.stdin.read)
        for task in tasks:
            task.cancel()


if __name__ == "__main__":
    with suppress(asyncio.CancelledError):
        asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
