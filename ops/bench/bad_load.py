"""Clients that behave badly, until standard input ends: ``python bad_load.py PORT PATH COUNT [KIND…]``.

Equal shares of the kinds named, else of `KINDS`. Says ``open`` once all have asked for the stream. Kinds: reads a byte
a second; never reads; ends its side after the request; goes on sending; sends the next requests ahead; resets in the
middle of a frame and comes again; vanishes: what comes to it is dropped and no longer answered, as if its cable were
cut. Only where named: asks for all history and never reads; asks for history in pages, or for the stream, or posts one
and the same event, again and again without reading.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import sys
from contextlib import suppress

KINDS = ("byte", "deaf", "half-close", "talkative", "pipelining", "resetting", "vanishing")
GREEDY = ("history", "pages", "flooding", "posting")
"""Kinds that make the server work, and so are not put beside others whose delays are measured."""
AHEAD = {"pipelining": 4, "flooding": 1_000, "pages": 1_000, "posting": 1_000}
"""Requests sent at once; of flooding clients so many again and again."""
SO_ATTACH_FILTER = 26
DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)
"""A program for the kernel's packet filter: of each packet keep nothing. It needs no privilege."""


def dial(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


def vanish(sock: socket.socket) -> None:
    """From now on nothing that is sent to it is received, nor acknowledged."""
    program = ctypes.create_string_buffer(DROP_ALL)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def asking(kind: str, path: str) -> bytes:
    if kind == "posting":
        # A duplicate after the first: what is stored would be counted as the client's.
        event = b'{"specversion":"1.0","id":"again","source":"/bad","type":"event","data":{"text":"%b"}}' % (b"x" * 100)
        media = "application/cloudevents+json"
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {media}\r\nContent-Length: {len(event)}"
        return head.encode() + b"\r\n\r\n" + event
    query = {"history": "?from=earliest", "pages": "?from=earliest&limit=1000"}.get(kind, "")
    media = "application/json" if kind == "pages" else "text/event-stream"
    return f"GET {path}{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {media}\r\n\r\n".encode()


async def misbehave(kind: str, port: int, path: str, asked: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    request = asking(kind, path)
    while True:
        sock = dial(port)
        try:
            await loop.sock_sendall(sock, request * (AHEAD[kind] if kind == "pipelining" else 1))
            asked.set()
            await _go_on(kind, sock, loop, request)
        except OSError:
            await asyncio.sleep(1)
        finally:
            sock.close()


async def _go_on(kind: str, sock: socket.socket, loop: asyncio.AbstractEventLoop, request: bytes) -> None:
    if kind == "half-close":
        sock.shutdown(socket.SHUT_WR)
    elif kind == "vanishing":
        await loop.sock_recv(sock, 65_536)
        vanish(sock)
    for _ in range(3600):
        if kind == "byte":
            if not await loop.sock_recv(sock, 1):
                return
        elif kind == "talkative":
            await loop.sock_sendall(sock, b"x")
        elif kind in GREEDY and kind in AHEAD:
            await loop.sock_sendall(sock, request * AHEAD[kind])
        elif kind == "resetting":
            await loop.sock_recv(sock, 100)
            await asyncio.sleep(2)
            return
        elif kind == "half-close" and not await loop.sock_recv(sock, 65_536):
            await asyncio.sleep(2)
            return
        await asyncio.sleep(1)


async def main(port: int, path: str, count: int, kinds: tuple[str, ...]) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        asked = [asyncio.Event() for _ in range(count)]
        tasks = [group.create_task(misbehave(kinds[n % len(kinds)], port, path, asked[n])) for n in range(count)]
        for each in asked:
            await each.wait()
        print("open", flush=True)
        await loop.run_in_executor(None, sys.stdin.read)
        for task in tasks:
            task.cancel()


if __name__ == "__main__":
    with suppress(asyncio.CancelledError):
        asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), tuple(sys.argv[4:]) or KINDS))
