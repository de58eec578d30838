"""HTTP/1.1 over a plain socket: what is sent is sent as it stands, what comes back is read by a small parser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

PATIENCE = 20.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def problem(self) -> str:
        assert self.headers["content-type"] == "application/problem+json", self
        document = self.json()
        assert document["status"] == self.status
        assert document["title"]
        return str(document["type"]).removeprefix("/problems/")


class RawConnection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def request(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Answer:
        await self.send(request_bytes(method, target, body, headers))
        return await self.answer(method=method)

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(PATIENCE):
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = text[:-4].split("\r\n")
        return int(first.split()[1]), {k.strip().lower(): v.strip() for k, v in (row.split(":", 1) for row in rest)}

    async def answer(self, *, method: str = "POST") -> Answer:
        status, headers = await self.head()
        while status == 100:
            status, headers = await self.head()
        if method == "HEAD" or status in {204, 304}:
            return Answer(status, headers, b"")
        body = b"".join([part async for part in self.parts(headers)])
        return Answer(status, headers, body)

    async def parts(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        async with asyncio.timeout(PATIENCE):
            if "chunked" in headers.get("transfer-encoding", ""):
                while size := int(await self.reader.readline(), 16):
                    yield await self.reader.readexactly(size)
                    await self.reader.readline()
                await self.reader.readline()
            elif "content-length" in headers:
                yield await self.reader.readexactly(int(headers["content-length"]))
            else:
                yield await self.reader.read()

    async def at_end(self) -> bool:
        """Whether the server ends the connection (waits for it)."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self.reader.read(1) == b""
        except ConnectionError:
            return True


def request_bytes(method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """A well-formed request with exactly these header fields besides Host and Content-Length."""
    fields = {"Host": "test", **(headers or {})}
    if body and "Transfer-Encoding" not in fields and "Content-Length" not in fields:
        fields["Content-Length"] = str(len(body))
    head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return head.encode("latin-1") + b"\r\n" + body


def chunked(*parts: bytes, end: bool = True) -> bytes:
    text = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return text + b"0\r\n\r\n" if end else text


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[RawConnection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=8 * 1024 * 1024)
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.transport.abort()


async def post(port: int, target: str, body: bytes, headers: dict[str, str] | None = None) -> Answer:
    """One POST on a connection of its own; JSON unless the headers say otherwise."""
    async with connected(port) as connection:
        return await connection.request("POST", target, body, {"Content-Type": "application/json", **(headers or {})})


async def get(port: int, target: str, headers: dict[str, str] | None = None, *, method: str = "GET") -> Answer:
    async with connected(port) as connection:
        return await connection.request(method, target, b"", headers)
