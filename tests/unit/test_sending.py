"""Segments against servers that leave in the middle of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
import uvloop

from services.cli.sending import LineSource, Piece, Sender
from shared.errors import StartError, Unavailable

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
)
SUMMARY = b'{"summary":{"stored":2,"duplicates":0,"failed":0}}\n'


class TwoPieces:
    """A source whose end comes when it is told."""

    def __init__(self, large: bytes) -> None:
        self.end = asyncio.Event()
        self._pieces = [Piece(b"{}\n", [1]), Piece(large, [2])]

    async def next(self) -> Piece | None:
        if self._pieces:
            return self._pieces.pop(0)
        await self.end.wait()
        return None


def small_buffers(address: tuple[object, ...]) -> socket.socket:
    """A socket for which little goes out ahead of its reader, so that the rest waits in the transport."""
    opened = socket.socket(address[0], socket.SOCK_STREAM)  # type: ignore[arg-type]
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return opened


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_server_that_leaves_just_before_the_last_chunk_is_asked_again(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_leaves_before_the_last_chunk())


async def _leaves_before_the_last_chunk() -> None:
    source = TwoPieces(b" " * 60_000 + b"\n")
    served: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        if len(served) == 1:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write_eof()
            for _ in range(100):  # turns of the loop in which the client sees that, while it still has much to write
                await asyncio.sleep(0)
            source.end.set()
            return
        await reader.readuntil(b"\r\n0\r\n\r\n")
        for earlier in served[:-1]:
            earlier.transport.abort()
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(SUMMARY), SUMMARY))
        await reader.read()  # until the client closes
        writer.close()

    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listening.bind(("127.0.0.1", 0))
    async with (
        asyncio.timeout(20),
        await asyncio.start_server(serve, sock=listening) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=small_buffers)) as session,
    ):
        port = server.sockets[0].getsockname()[1]
        sender = Sender(session, f"http://127.0.0.1:{port}/")
        await sender.send(source)
    assert len(served) == 3, "one piece at a time, after the first attempt"
    assert (sender.totals.lines, sender.totals.retries) == (2, 1)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def sending_to(serve: Serve) -> AsyncGenerator[Sender]:
    """A sender to a server that answers like this; 20 s for all of it."""
    handlers: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        await serve(reader, writer)
        writer.close()
        await writer.wait_closed()

    async with asyncio.timeout(20):
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server, aiohttp.ClientSession() as session:
            yield Sender(session, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        await asyncio.gather(*filter(None, handlers))


async def test_segment_goes_again_as_soon_as_one_of_its_lines_failed() -> None:
    """The rest of the answer is not waited for."""
    problem = b'{"line":1,"problem":{"title":"not now","status":503}}\n'
    attempts = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        answer = problem if attempts == 1 else SUMMARY
        await reader.readuntil(b"\r\n\r\n")
        if attempts > 1:
            await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.write(HEAD + b"%x\r\n%b\r\n" % (len(answer), answer))
        if attempts > 1:
            writer.write(b"0\r\n\r\n")
        await reader.read()

    async with sending_to(serve) as sender:
        await sender.send(LineSource([(1, b"{}"), (2, b"{}")]))
    assert attempts == 2
    assert sender.totals.as_dict() == {"lines": 2, "stored": 2, "duplicates": 0, "failed": 0}


async def test_server_that_takes_no_byte_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.cli.sending.ANSWER_TIMEOUT", 0.2)
    monkeypatch.setattr("services.cli.sending.GIVE_UP_AFTER", 0.1)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listening.bind(("127.0.0.1", 0))
    listening.listen()  # the kernel accepts, as for a process that is stopped
    with listening:
        async with (
            asyncio.timeout(20),
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=small_buffers)) as session,
        ):
            sender = Sender(session, f"http://127.0.0.1:{listening.getsockname()[1]}/")
            with pytest.raises(Unavailable, match="given up"):
                await sender.send(LineSource([(number, b" " * 60_000) for number in range(100)]))


class Damaged:
    """A source that ends with an error."""

    def __init__(self) -> None:
        self._pieces = [Piece(b"{}\n", [1]), Piece(b"{}\n", [2])]

    async def next(self) -> Piece | None:
        if self._pieces:
            return self._pieces.pop(0)
        raise StartError("it cannot be read to its end")


async def test_what_the_source_fails_with_is_raised_once_all_before_it_is_confirmed() -> None:
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        bodies.append(await reader.readuntil(b"\r\n0\r\n\r\n"))
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(SUMMARY), SUMMARY))
        await reader.read()

    async with sending_to(serve) as sender:
        with pytest.raises(StartError, match="to its end"):
            await sender.send(Damaged())
    assert len(bodies) == 1
    assert (sender.totals.lines, sender.totals.retries) == (2, 0)


async def test_server_that_gets_through_with_little_at_a_time_only_gets_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails whatever has more than so many lines, and gets all of them in the end, in order."""
    monkeypatch.setattr("services.cli.sending.FIRST_PAUSE", 0.01)
    most, failed = 300, 0
    stored: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal failed
        await reader.readuntil(b"\r\n\r\n")
        lines = b""
        while size := int(await reader.readline(), 16):
            lines += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        taken = lines.splitlines()
        if len(taken) > most:
            failed += 1
            answer = b'{"line":%d,"problem":{"title":"not now","status":503}}\n' % most
        else:
            stored.extend(taken)
            answer = b'{"summary":{"stored":%d,"duplicates":0,"failed":0}}\n' % len(taken)
        writer.write(HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(answer), answer))

    sent = [b'{"n":%d,"filling":"%b"}' % (number, b"x" * 600) for number in range(3000)]
    async with sending_to(serve) as sender:
        await sender.send(LineSource(enumerate(sent, 1)))
    assert stored == sent
    assert sender.totals.lines == sender.totals.stored == 3000
    assert sender.totals.retries == failed < 20
