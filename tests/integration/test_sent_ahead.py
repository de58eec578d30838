"""Requests that are sent ahead of their answers, in the application's way: each whole one is answered, little is parsed
ahead, nothing is logged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from fake_dispatcher import FakeContext
from produce_server import ProduceServer, produce_server, tight_settings
from raw_http import connected, request_bytes

from gateway.protocol import MAX_AHEAD, PARSED_AT_ONCE, CdrsHttpProtocol

ORDERS = "/v1/streams/orders/events"
JSON = {"Content-Type": "application/json"}
SHORT = b"GET / HTTP/1.1\r\nHost:a\r\n\r\n"
NOT_HTTP = b"junk\r\n\r\n"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server() -> AsyncIterator[ProduceServer]:
    async with produce_server(FakeContext(settings=tight_settings())) as running:
        yield running


@pytest.fixture
def server(shared_server: ProduceServer) -> ProduceServer:
    return shared_server.emptied()


@pytest.mark.parametrize("rubbish", [NOT_HTTP, b"GET / HTTP/2.0\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 300])
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
    count, most = 20_000, 0
    plain = CdrsHttpProtocol._parse

    def parse(self: CdrsHttpProtocol, data: bytes) -> None:
        nonlocal most
        plain(self, data)
        most = max(most, len(self.pipeline))

    monkeypatch.setattr(CdrsHttpProtocol, "_parse", parse)
    async with connected(server.port) as connection:
        connection.writer.write(SHORT * count)
        for _ in range(count):
            assert (await connection.answer(method="GET")).status == 404
    assert MAX_AHEAD <= most <= MAX_AHEAD + PARSED_AT_ONCE // len(SHORT) + 1


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
