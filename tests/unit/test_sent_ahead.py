"""What a connection keeps of requests that were sent ahead of their answers, beneath any server."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
import weakref
from typing import Any, cast

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway import ahead
from gateway.short_protocol import ShortcutProtocol, http_protocol
from gateway.watched import UNTAKEN
from shared.settings import GatewaySettings

READ = 256_000
"""What the event loop reads at once."""
LIMIT = 256 * 1024
STREAM = b"GET /v1/streams/a/events HTTP/1.1\r\nHost:a\r\n\r\n"
TINY = b"GET / HTTP/1.1\r\nHost:a\r\n\r\n"
REQUESTS = {
    "tiny": TINY,
    "HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "many fields": b"GET / HTTP/1.1\r\nHost:a\r\n" + b"".join(b"%c:\r\n" % (97 + n % 26) for n in range(95)) + b"\r\n",
    "chunked": b"POST / HTTP/1.1\r\nHost:a\r\nTransfer-Encoding:chunked\r\n\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n",
    "long": b"POST / HTTP/1.1\r\nHost:a\r\nContent-Length:60000\r\n\r\n" + b"\r\n" * 30_000,
}


class Wire(asyncio.Transport):
    """The server's side of a connection; the test is the client."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = True
        self.written: list[bytes] = []
        self.untaken = 0
        """Bytes that wait for the client."""

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """It is never full."""

    def get_write_buffer_size(self) -> int:
        return self.untaken

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        """The test closes."""

    def abort(self) -> None:
        """The test closes."""


class Application:
    """Asks for the end of the client, like an event stream, and answers when it may."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.seen: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope["path"])
        while (await receive()).get("more_body"):
            pass
        waiting = [asyncio.ensure_future(each) for each in (receive(), self.may_answer.wait())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()
        if self.may_answer.is_set():
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})


def opened(application: Application) -> tuple[ShortcutProtocol, Wire]:
    config = Config(cast("Any", application), log_config=None, lifespan="off")
    config.load()
    wire = Wire()
    protocol = cast("ShortcutProtocol", http_protocol(GatewaySettings())(config, ServerState(), {}))
    protocol.connection_made(wire)
    return protocol, wire


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize(("size", "limit"), [(READ, LIMIT), (READ // 4, READ // 4 + 2 * ahead.PARSED)])
async def test_all_of_it_fits_into_the_limit(name: str, size: int, limit: int) -> None:
    request_ = REQUESTS[name]
    protocol, wire = opened(Application())
    protocol.data_received(STREAM)
    await turns()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        protocol.data_received((request_ * (size // len(request_) + 1))[:size])
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before <= limit
    finally:
        tracemalloc.stop()
    await turns()
    assert not wire.reads, "whoever waits for the client does not make it read on"
    protocol.connection_lost(None)
    await turns()


async def test_what_fits_is_parsed_and_all_of_it_is_answered_in_order() -> None:
    application = Application()
    protocol, wire = opened(application)
    protocol.data_received(b"".join(b"GET /%d HTTP/1.1\r\nHost:a\r\n\r\n" % n for n in range(4000)))
    await turns()
    assert application.seen == ["/0"]
    application.may_answer.set()
    for _ in range(40_000):
        if wire.reads:
            break
        await asyncio.sleep(0)
    await turns()
    assert application.seen == [f"/{n}" for n in range(4000)]
    assert b"".join(wire.written).count(b"HTTP/1.1 204 ") == 4000
    protocol.connection_lost(None)


async def test_the_end_of_the_clients_side_waits_for_what_came_before_it() -> None:
    application = Application()
    protocol, wire = opened(application)
    post = b"POST /%d HTTP/1.1\r\nHost:a\r\nContent-Length:0\r\n\r\n"
    protocol.data_received(b"".join(post % n for n in range(4000)))
    await turns()
    assert protocol.eof_received(), "there is more to be answered"
    application.may_answer.set()
    for _ in range(40_000):
        if len(application.seen) == 4000:
            break
        await asyncio.sleep(0)
    await turns()
    answers = b"".join(wire.written)
    assert answers.count(b"HTTP/1.1 204 ") == 4000
    assert answers.count(b"connection: close") == 1, "with the last one"
    protocol.connection_lost(None)


@pytest.mark.parametrize("untaken", [0, UNTAKEN + 1])
@pytest.mark.parametrize("sent", [2 * len(TINY), 2 * ahead.UNREAD])
async def test_who_is_far_ahead_of_answers_that_wait_is_received_little_from(untaken: int, sent: int) -> None:
    """Before it is known whether it reads; who takes its answers may be as far ahead as it likes."""
    protocol, wire = opened(Application())
    wire.untaken = untaken
    protocol.data_received(STREAM)
    await turns()
    protocol.data_received((TINY * sent)[:sent])
    is_far = untaken > 0 and sent > ahead.UNREAD
    assert (protocol._is_narrow, protocol._is_sending_narrow) == (is_far, is_far)
    with protocol.streaming():
        assert not protocol._is_sending_narrow, "what is written in pieces goes as fast as it is taken"
    protocol.connection_lost(None)
    await turns()


async def test_what_was_never_begun_leaves_no_circle() -> None:
    protocol, _ = opened(Application())
    protocol.data_received(STREAM + TINY * 20)
    await turns()
    held = weakref.ref(protocol)
    gc.collect()
    gc.disable()
    try:
        protocol.connection_lost(None)
        del protocol
        await turns()
        assert held() is None
    finally:
        gc.enable()


async def test_an_answer_may_outlive_its_connection() -> None:
    protocol, _ = opened(Application())
    protocol.data_received(STREAM)
    protocol.connection_lost(None)
    protocol.leave_after_answer()
    await turns()


async def test_a_head_that_began_behind_them_is_read_on_while_the_last_is_answered() -> None:
    application = Application()
    protocol, wire = opened(application)
    protocol.data_received(TINY * 5 + TINY[:10])
    await turns()
    assert not wire.reads
    application.may_answer.set()
    while not wire.reads:
        await asyncio.sleep(0)
    protocol.data_received(TINY[10:])
    await turns()
    assert len(application.seen) == 6
    protocol.connection_lost(None)
    await turns()


@pytest.mark.parametrize("data", [b"\r\n" * (READ // 2), STREAM[:-2] + b"a:\r\n" * 60, b"x" * READ])
def test_a_piece_that_is_due_has_an_end(data: bytes) -> None:
    for in_head in (False, True):
        for in_body in (False, True):
            assert 0 < ahead.end_of_one(data, 0, in_head=in_head, in_body=in_body) <= len(data)


def test_a_piece_that_is_due_has_one_head_in_it() -> None:
    data = TINY * 100
    ends = [0]
    while ends[-1] < len(data):
        ends.append(ahead.end_of_one(data, ends[-1], in_head=False, in_body=False))
    assert ends == [n * len(TINY) for n in range(101)]
    assert ahead.end_of_one(data, len(TINY) - 1, in_head=True, in_body=False) == len(TINY), "its end may be cut"
