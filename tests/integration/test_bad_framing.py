"""The bad-input catalogue, entries about framing, time and size of requests (B2, B9, B10, B48-B52): what is refused
below the application, or while a body is being read. Every refusal ends the connection and stores nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from fake_dispatcher import FakeContext
from produce_server import ProduceServer, produce_server, tight_settings
from raw_http import Answer, chunked, connected, get, request_bytes

from gateway import ahead
from gateway.protocol import CdrsHttpProtocol

ORDERS = "/v1/streams/orders/events"
JSON = {"Content-Type": "application/json"}
SHORT = b"GET / HTTP/1.1\r\nHost:a\r\n\r\n"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server() -> AsyncIterator[ProduceServer]:
    async with produce_server(FakeContext(settings=tight_settings())) as running:
        yield running


@pytest.fixture
def server(shared_server: ProduceServer) -> ProduceServer:
    """The one server, emptied."""
    return shared_server.emptied()


async def refused(server: ProduceServer, data: bytes, *, method: str = "POST") -> Answer:
    """The answer to raw bytes, after which the connection must be closed."""
    async with connected(server.port) as connection:
        await connection.send(data)
        answer = await connection.answer(method=method)
        assert answer.headers["connection"] == "close"
        assert await connection.at_end()
    assert server.dispatcher.events() == []
    return answer


async def test_b2_a_cut_body_stores_nothing(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        await connection.send(request_bytes("POST", ORDERS, b'{"a":1}', JSON | {"Content-Length": "20"}))
        connection.writer.write_eof()
        answer = await connection.answer()
        assert (answer.status, answer.problem) == (400, "invalid-request")
        assert await connection.at_end()
    async with connected(server.port) as connection:
        await connection.send(
            request_bytes("POST", ORDERS, chunked(b"{}", end=False), JSON | {"Transfer-Encoding": "chunked"})
        )
    assert (await get(server.port, ORDERS)).status == 200
    assert server.dispatcher.events() == []


async def test_b9_is_answered_before_the_body_is_read(server: ProduceServer) -> None:
    answer = await refused(server, request_bytes("POST", ORDERS, b"", JSON | {"Content-Length": "99999999999"}))
    assert (answer.status, answer.problem) == (413, "payload-too-large")


async def test_b10_chunked_is_refused_once_the_limit_is_crossed(server: ProduceServer) -> None:
    body = chunked(*[b'"' + b"x" * 1000] * 10, end=False)
    answer = await refused(server, request_bytes("POST", ORDERS, body, JSON | {"Transfer-Encoding": "chunked"}))
    assert (answer.status, answer.problem) == (413, "payload-too-large")


async def test_b10_a_client_that_goes_on_sending_still_gets_the_answer(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        await connection.send(request_bytes("POST", ORDERS, b"", JSON | {"Content-Length": "3000000"}))
        for _ in range(30):
            await connection.send(b"x" * 100_000)
        answer = await connection.answer()
        assert (answer.status, answer.problem) == (413, "payload-too-large")
        async with asyncio.timeout(20):
            assert await connection.reader.read() == b"", "ended, not reset"


async def test_unwanted_bodies_do_not_go_on_for_ever(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        await connection.send(request_bytes("POST", "/nowhere", b"", JSON | {"Transfer-Encoding": "chunked"}))
        assert (await connection.answer()).status == 404
        try:
            for _ in range(50):
                await connection.send(chunked(b"x" * 10_000, end=False))
        except ConnectionError:
            pass
        assert await connection.at_end()


async def test_a_small_unwanted_body_costs_no_connection(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        for _ in range(2):
            answer = await connection.request("POST", ORDERS, b"x" * 9000, {"Content-Type": "text/plain"})
            assert answer.status == 415
        assert (await connection.request("POST", ORDERS, b"{}", JSON)).status == 201


AMBIGUOUS = {
    "length-and-coding": b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "two-lengths": b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "length-list": b"Content-Length: 2, 2\r\n\r\n{}",
    "signed-length": b"Content-Length: +2\r\n\r\n{}",
    "obs-fold": b"Content-Length: 2\r\nX-A: a\r\n b\r\n\r\n{}",
    "bare-lf": b"Content-Length: 2\n\n{}",
    "bare-cr": b"X-A: b\rContent-Length: 2\r\n\r\n{}",
    "chunked-identity": b"Transfer-Encoding: chunked, identity\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "gzip-chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "other-coding": b"Transfer-Encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "coding-twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "space-before-colon": b"Content-Length : 2\r\n\r\n{}",
    "nul": b"X-A: \0\r\nContent-Length: 2\r\n\r\n{}",
    "bad-chunk-size": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "chunk-overrun": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}x\r\n0\r\n\r\n",
    "chunk-bare-lf": b"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n",
}


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_b48_ambiguous_framing_is_refused_and_the_connection_closed(server: ProduceServer, name: str) -> None:
    head = f"POST {ORDERS} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n".encode()
    answer = await refused(server, head + AMBIGUOUS[name])
    assert (answer.status, answer.problem) == (400, "invalid-request")


async def test_b48_a_trailer_is_no_header_field(server: ProduceServer) -> None:
    body = b"2\r\n{}\r\n0\r\nCdrs-Key: forged\r\n\r\n"
    async with connected(server.port) as connection:
        answer = await connection.request("POST", ORDERS, body, JSON | {"Transfer-Encoding": "chunked"})
    assert answer.status == 201
    assert server.dispatcher.events()[0].key is None


@pytest.mark.parametrize(
    "text",
    [
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["http-0.9", "no-host", "http-2", "tls", "h2-preface", "byte", "star"],
)
async def test_b49_what_is_not_a_request_for_us(server: ProduceServer, text: bytes) -> None:
    answer = await refused(server, text)
    assert (answer.status, answer.problem) == (400, "invalid-request")


async def test_b50_slow_headers(server: ProduceServer) -> None:
    answer = await refused(server, b"POST / HTTP/1.1\r\nHost: t")
    assert (answer.status, answer.problem) == (408, "request-timeout")


async def test_b50_dribbled_headers_do_not_move_the_deadline(server: ProduceServer) -> None:
    async with connected(server.port) as connection:

        async def dribble() -> None:
            await connection.send(b"GET / HTTP/1.1\r\nX: ")
            while True:
                await connection.send(b"x")
                await asyncio.sleep(0.02)

        dribbling = asyncio.create_task(dribble())
        answer = await connection.answer()
        dribbling.cancel()
        await asyncio.gather(dribbling, return_exceptions=True)
    assert (answer.status, answer.problem) == (408, "request-timeout")


async def test_b50_one_header_field_without_end(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        await connection.send(b"GET / HTTP/1.1\r\nHost: t\r\nX: " + b"x" * 60_000)
        answer = await connection.answer()
    assert (answer.status, answer.problem) == (431, "headers-too-large")


async def test_b50_slow_body(server: ProduceServer) -> None:
    answer = await refused(server, request_bytes("POST", ORDERS, b'{"a', JSON | {"Content-Length": "20"}))
    assert (answer.status, answer.problem) == (408, "request-timeout")


async def test_b52_pipelined_requests_are_answered_in_order(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        sending = asyncio.create_task(
            connection.send(b"".join(request_bytes("POST", ORDERS, b"%d" % n, JSON) for n in range(1000)))
        )
        for n in range(1000):
            answer = await connection.answer()
            assert answer.json()["offset"] == str(n)
        await sending
    assert [value.rpartition(b":")[2] for value in server.dispatcher.values()] == [b"%d}" % n for n in range(1000)]


async def test_b52_expect_then_silence(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        await connection.send(
            request_bytes("POST", ORDERS, b"", JSON | {"Expect": "100-continue", "Content-Length": "2"})
        )
        assert (await connection.head())[0] == 100
        answer = await connection.answer()
        assert (answer.status, answer.problem) == (408, "request-timeout")
        assert await connection.at_end()


async def test_b52_expect_and_a_refusal_closes(server: ProduceServer) -> None:
    answer = await refused(
        server,
        request_bytes(
            "POST", ORDERS, b"", {"Expect": "100-continue", "Content-Length": "2", "Content-Type": "text/plain"}
        ),
    )
    assert answer.status == 415


async def test_b52_expect_and_a_body(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        await connection.send(
            request_bytes("POST", ORDERS, b"", JSON | {"Expect": "100-continue", "Content-Length": "2"})
        )
        assert (await connection.head())[0] == 100
        await connection.send(b"{}")
        assert (await connection.answer()).status == 201


async def test_a_defect_says_nothing_of_itself(server: ProduceServer) -> None:
    answer = await get(server.port, "/broken")
    assert (answer.status, answer.problem) == (500, "internal")
    assert b"canary" not in answer.body


# --- requests that are sent ahead of their answers ----------------------------------------------------


@pytest.mark.parametrize(
    "rubbish", [b"junk\r\n\r\n", b"GET / HTTP/2.0\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 300]
)
async def test_whole_requests_before_rubbish_are_answered(
    server: ProduceServer, caplog: pytest.LogCaptureFixture, rubbish: bytes
) -> None:
    async with connected(server.port) as connection:
        await connection.send(SHORT * 3 + rubbish)
        answers = [await connection.answer(method="GET") for _ in range(3)]
        assert [answer.status for answer in answers] == [404] * 3
        assert answers[-1].headers["connection"] == "close"
        assert await connection.at_end()
    assert not caplog.records


async def test_a_request_before_one_that_is_cut_short_is_answered(server: ProduceServer) -> None:
    cut = request_bytes("POST", ORDERS, b"{}", JSON | {"Content-Length": "20"})
    async with connected(server.port) as connection:
        await connection.send(SHORT + cut)
        connection.writer.write_eof()
        assert (await connection.answer(method="GET")).status == 404
        rest = await connection.reader.read()
        assert not rest or rest.startswith(b"HTTP/1.1 400 ")  # which of both is seen first is chance
    assert server.dispatcher.events() == []


async def test_little_is_parsed_ahead(server: ProduceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    count, parsed, kept = 20_000, 0, 0
    plain = CdrsHttpProtocol._parse_all

    def parse_all(self: CdrsHttpProtocol, data: bytes) -> None:
        nonlocal parsed, kept
        plain(self, data)
        parsed = max(parsed, len(self.pipeline))
        kept = max(kept, ahead.REQUEST * (len(self.pipeline) + 1) + len(self._behind))

    monkeypatch.setattr(CdrsHttpProtocol, "_parse_all", parse_all)
    async with connected(server.port) as connection:
        connection.writer.write(SHORT * count)
        for _ in range(count):
            assert (await connection.answer(method="GET")).status == 404
    assert parsed >= 1, "where it fits"
    assert kept <= 256 * 1024 + ahead.REQUEST, "what asyncio's own loop reads at once, and the request under way"


async def test_all_that_was_sent_ahead_is_answered_to_who_ends_its_side(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        batch = request_bytes("POST", "/v1/events", b"[]", {"Content-Type": "application/cloudevents-batch+json"})
        connection.writer.write(batch * 1000)
        connection.writer.write_eof()
        for _ in range(1000):
            await connection.answer()
        assert await connection.at_end()


async def test_a_connection_that_went_the_long_way_is_kept(server: ProduceServer) -> None:
    """Its first POST is the application's, as the gateway does not know the stream yet."""
    async with connected(server.port) as connection:
        await connection.send(request_bytes("POST", ORDERS, b"{}", JSON))
        assert (await connection.answer()).status == 201
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3 * tight_settings().gateway.header_timeout):
                await connection.reader.read(1)
