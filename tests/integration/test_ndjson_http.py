"""NDJSON as a client sees it: answered while it streams, line by line, in order, every complete line settled."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_dispatcher import FakeContext, with_gateway
from produce_server import ProduceServer, produce_server
from raw_http import Answer, RawConnection, chunked, connected, get, post, request_bytes

from gateway.lines import CHUNK_LINES
from gateway.ndjson import MAX_WAITING_LINES
from shared.errors import CdrsError, Overloaded, Unavailable
from shared.records import NewEvent, Settlement

ORDERS = "/v1/streams/orders/events"
NDJSON = {"Content-Type": "application/x-ndjson"}
STREAMED = {**NDJSON, "Transfer-Encoding": "chunked"}


@pytest.fixture
async def server() -> AsyncIterator[ProduceServer]:
    async with produce_server(FakeContext(settings=with_gateway(body_timeout=0.5, max_event_bytes=4096))) as running:
        yield running


def event(event_id: str, **members: object) -> bytes:
    return json.dumps({"specversion": "1.0", "id": event_id, "source": "/s", "type": "t"} | members).encode()


def summary(lines: int, stored: int, duplicates: int = 0, failed: int = 0) -> dict[str, Any]:
    return {"summary": {"lines": lines, "stored": stored, "duplicates": duplicates, "failed": failed}}


async def line_of(parts: AsyncIterator[bytes]) -> Any:
    while not (text := await anext(parts)).strip():
        pass
    return json.loads(text)


async def test_payloads_and_events(server: ProduceServer) -> None:
    body = b'{"a":1}\r\n\n' + event("e1", data=[1, 2], partitionkey="k") + b'\n"text"\n{"specversion":"1.0","id":"x"}'
    answer = await post(server.port, ORDERS, body, NDJSON)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    *receipts, last = answer.lines()
    assert [receipt["stream"] for receipt in receipts] == ["orders"] * 4
    assert receipts[1]["id"] == "e1"
    assert last == summary(5, 4)
    assert [value[value.rindex(b'"data":') :] for value in server.dispatcher.values()] == [
        b'"data":{"a":1}}',
        b'"data":[1, 2]}',
        b'"data":"text"}',
        b'"data":{"specversion":"1.0","id":"x"}}',
    ]
    assert server.context.ingested("stored") == 4


async def test_bad_lines_do_not_take_the_others_with_them(server: ProduceServer) -> None:
    body = b"\n".join(
        [
            event("a"),
            b"{bad",
            event("#b"),
            b"x" * 5000,
            event("a"),
            event("a", data=1),
            b"",
            event("c", cdrsstream="other"),
        ]
    )
    answer = await post(server.port, ORDERS, body, NDJSON)
    good, bad, bad_id, long, again, mismatch, foreign, last = answer.lines()
    assert (good["id"], good["duplicate"]) == ("a", False)
    assert (bad["line"], bad["problem"]["type"], bad["problem"]["status"]) == (2, "/problems/malformed-json", 400)
    assert (bad_id["line"], bad_id["problem"]["type"]) == (3, "/problems/invalid-id")
    assert (long["line"], long["problem"]["type"]) == (4, "/problems/payload-too-large")
    assert (again["id"], again["duplicate"]) == ("a", True)
    assert (mismatch["line"], mismatch["problem"]["type"]) == (6, "/problems/idempotency-mismatch")
    assert (foreign["line"], foreign["problem"]["type"]) == (8, "/problems/reserved-field")
    assert last == summary(8, 1, 1, 5)
    assert b"bad" not in b"".join(server.dispatcher.values())


async def test_a_line_beyond_the_limit_is_skipped_as_it_comes(server: ProduceServer) -> None:
    parts = [b"1\n", *[b"x" * 60_000] * 20, b"\n2\n"]
    answer = await post(server.port, ORDERS, chunked(*parts), STREAMED)
    one, long, two, last = answer.lines()
    assert "cursor" in one
    assert (long["line"], long["problem"]["type"]) == (2, "/problems/payload-too-large")
    assert "cursor" in two
    assert last == summary(3, 2, 0, 1)


async def test_errors_only(server: ProduceServer) -> None:
    answer = await post(server.port, ORDERS + "?receipts=errors", b"1\n?\n2\n", NDJSON)
    problem, last = answer.lines()
    assert problem["line"] == 2
    assert last == summary(3, 2, 0, 1)


async def test_nothing_is_answered_with_a_summary(server: ProduceServer) -> None:
    for body in (b"", b"\n\r\n"):
        answer = await post(server.port, ORDERS, body, NDJSON | {"Content-Length": str(len(body))})
        assert answer.lines() == [summary(body.count(b"\n"), 0)]


async def test_many_streams(server: ProduceServer) -> None:
    body = b"\n".join([event("1", cdrsstream="a", data=1), event("1", cdrsstream="b"), event("1"), b"5"])
    answer = await post(server.port, "/v1/events", body, NDJSON)
    a, b, none, bare, last = answer.lines()
    assert (a["stream"], b["stream"]) == ("a", "b")
    assert none["problem"]["type"] == bare["problem"]["type"] == "/problems/invalid-stream"
    assert last == summary(4, 2, 0, 2)
    assert sorted(server.context.catalog.asked) == ["a", "b"]


async def test_idempotency_key_counts_lines(server: ProduceServer) -> None:
    headers = NDJSON | {"Idempotency-Key": '"once"'}
    first = await post(server.port, ORDERS, b"1\n\n1\n1", headers)
    again = await post(server.port, ORDERS, b"1\n\n1\n1", headers)
    assert first.lines()[-1] == summary(4, 3)
    assert again.lines()[-1] == summary(4, 0, 3)
    assert [r["id"] for r in first.lines()[:-1]] == [r["id"] for r in again.lines()[:-1]]


async def test_answers_come_while_the_request_goes_on(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        await connection.send(request_bytes("POST", ORDERS, b"", STREAMED))
        status, headers = await connection.head()
        assert status == 200
        parts = connection.parts(headers)
        for n in range(3):
            await connection.send(chunked(b"%d\n" % n, end=False))
            assert (await line_of(parts))["offset"] == str(n)
        await connection.send(chunked(b"3"))
        assert (await line_of(parts))["offset"] == "3"
        assert await line_of(parts) == summary(4, 4)


async def test_order_is_kept_whatever_the_pieces(server: ProduceServer) -> None:
    body = b"".join(event(f"e{n}", data="x" * (n % 700)) + b"\n" for n in range(2000))
    pieces = [body[at : at + 777] for at in range(0, len(body), 777)]
    answer = await post(server.port, ORDERS, chunked(*pieces), STREAMED)
    *receipts, last = answer.lines()
    assert [receipt["id"] for receipt in receipts] == [f"e{n}" for n in range(2000)]
    assert [int(receipt["offset"]) for receipt in receipts] == list(range(2000))
    assert last == summary(2000, 2000)


async def test_what_was_not_stored_is_said_line_by_line(server: ProduceServer) -> None:
    def judge(stored: NewEvent) -> Settlement | None:
        problems = {b"b": "unavailable", b"c": "outcome-unknown"}
        problem = problems.get(stored.value.partition(b'"id":"')[2][:1])
        return Settlement(problem=problem) if problem else None

    server.dispatcher.judge = judge
    answer = await post(server.port, ORDERS, b"\n".join([event("a"), event("b"), event("c")]), NDJSON)
    a, b, c, last = answer.lines()
    assert a["id"] == "a"
    assert (b["line"], b["problem"]["status"], b["problem"]["id"]) == (2, 503, "b")
    assert (c["line"], c["problem"]["status"], c["problem"]["id"]) == (3, 504, "c")
    assert last == summary(3, 1, 0, 2)


async def test_no_node_fails_the_lines_and_full_queues_are_waited_for(server: ProduceServer) -> None:
    server.dispatcher.refuse = lambda: Unavailable("no node")
    answer = await post(server.port, ORDERS, b"1\n2\n", NDJSON)
    assert [line["problem"]["status"] for line in answer.lines()[:-1]] == [503, 503]
    times = iter(range(3))

    def refuse() -> CdrsError | None:
        return Overloaded("full") if next(times, None) is not None else None

    server.dispatcher.refuse = refuse
    answer = await post(server.port, ORDERS, b"1\n2\n", NDJSON)
    assert answer.lines()[-1] == summary(2, 2)


async def test_a_cut_body_settles_its_complete_lines(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        await connection.send(request_bytes("POST", ORDERS, chunked(b"1\n2\n3", end=False), STREAMED))
        _, headers = await connection.head()
        assert len((await anext(connection.parts(headers))).splitlines()) == 2
    for _ in range(3):
        async with connected(server.port) as connection:  # the server lives, and the partial line was no event
            answer = await connection.request("POST", ORDERS, b"9\n", NDJSON)
            assert answer.lines()[-1] == summary(1, 1)
    assert [value[-2:-1] for value in server.dispatcher.values()] == [b"1", b"2", b"9", b"9", b"9"]


async def test_a_body_that_stops_coming_is_given_up_and_said_so(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        await connection.send(request_bytes("POST", ORDERS, chunked(b"1\n2", end=False), STREAMED))
        answer: Answer = await connection.answer()
        receipt, problem = answer.lines()
        assert receipt["offset"] == "0"
        assert (problem["line"], problem["problem"]["type"]) == (2, "/problems/request-timeout")
        assert await connection.at_end()
    assert len(server.dispatcher.events()) == 1


async def test_expect_100(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        await connection.send(
            request_bytes("POST", ORDERS, b"", NDJSON | {"Expect": "100-continue", "Content-Length": "2"})
        )
        assert (await connection.head())[0] == 100
        await connection.send(b"1\n")
        assert (await connection.answer()).lines()[-1] == summary(1, 1)
    async with connected(server.port) as connection:
        await connection.send(
            request_bytes("POST", ORDERS, b"", NDJSON | {"Expect": "100-continue", "Content-Length": "2"})
        )
        assert (await connection.head())[0] == 100
        answer = await connection.answer()
        assert (answer.status, answer.problem) == (408, "request-timeout")


async def test_a_client_that_does_not_read_is_not_read_from_and_then_cut(server: ProduceServer) -> None:
    body = b"".join(event(f"e{n:06}", data="x" * 60) + b"\n" for n in range(80_000))
    connection = await _deaf(server.port)
    connection.writer.write(request_bytes("POST", ORDERS, body, NDJSON))
    assert await _is_cut(connection, server)
    stored = len(server.dispatcher.events())
    assert 0 < stored < 80_000, "reading stopped before the end of the body"
    assert (await post(server.port, ORDERS, b"1\n", NDJSON)).lines()[-1] == summary(1, 1)


async def test_what_is_on_its_way_is_bounded(server: ProduceServer) -> None:
    server.dispatcher.gate.clear()
    async with connected(server.port) as connection:
        sending = asyncio.create_task(
            connection.send(request_bytes("POST", ORDERS, b"1\n" * (3 * MAX_WAITING_LINES), NDJSON))
        )
        async with asyncio.timeout(20):
            while len(server.dispatcher.events()) <= MAX_WAITING_LINES - CHUNK_LINES:
                await asyncio.sleep(0.005)
        for _ in range(20):
            assert (await get(server.port, ORDERS)).status == 200  # others are served, and it gets its turns
        assert len(server.dispatcher.events()) <= MAX_WAITING_LINES
        server.dispatcher.gate.set()
        answer = await connection.answer()
        await sending
    assert answer.lines()[-1] == summary(3 * MAX_WAITING_LINES, 3 * MAX_WAITING_LINES)


async def _deaf(port: int) -> RawConnection:
    """A connection with the smallest receive buffer, from which nothing is read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
    return RawConnection(reader, writer)


async def _is_cut(connection: RawConnection, server: ProduceServer) -> bool:
    """Whether the server ends the connection, seen by the writing side."""
    try:
        async with asyncio.timeout(30):
            await connection.writer.drain()
            await connection.writer.wait_closed()
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    finally:
        connection.writer.transport.abort()
    return True


async def test_a_line_that_was_given_up_ends_the_request(server: ProduceServer) -> None:
    """Lines that come after it would overtake it when it is sent again; what is still being sent does no harm."""
    chunks = iter([None, Unavailable("no node")])
    server.dispatcher.refuse = lambda: next(chunks, None)
    async with connected(server.port) as connection:
        await connection.send(request_bytes("POST", ORDERS, b"", STREAMED))
        _, headers = await connection.head()
        parts = connection.parts(headers)
        await connection.send(chunked(b"1\n" * (3 * CHUNK_LINES), end=False))
        text = b""
        while b"ends here" not in text:
            text += await anext(parts)
        await connection.send(chunked(b"2\n" * 10))
        assert await anext(parts, None) is None
        assert await connection.at_end()
    *answers, last = map(json.loads, text.splitlines())
    assert (last["line"], last["problem"]["status"]) == (len(answers) + 1, 503)
    assert [each.get("problem", {}).get("status") for each in answers[: 2 * CHUNK_LINES]] == [
        *[None] * CHUNK_LINES, *[503] * CHUNK_LINES
    ]  # fmt: skip
    assert len(server.dispatcher.events()) == CHUNK_LINES


async def test_a_body_that_is_there_is_answered_to_its_end(server: ProduceServer) -> None:
    """All of it, although a line was given up; then the connection serves on."""
    chunks = iter([None, Unavailable("no node")])
    server.dispatcher.refuse = lambda: next(chunks, None)
    lines = 3 * CHUNK_LINES
    async with connected(server.port) as connection:
        answer = await connection.request("POST", ORDERS, b"1\n" * lines, NDJSON)
        *answers, last = answer.lines()
        assert last == summary(lines, CHUNK_LINES, 0, 2 * CHUNK_LINES)
        assert all(each["problem"]["id"] for each in answers[CHUNK_LINES:]), "what to repeat them with"
        again = await connection.request("POST", ORDERS, b"1\n", NDJSON)
        assert again.lines()[-1] == summary(1, 1)


async def test_what_is_routed_anew_does_not_overtake_either(server: ProduceServer) -> None:
    """A stream gets its spread at this moment: the first chunk cannot be placed, those behind it could."""
    seen: set[bytes] = set()

    def judge(stored: NewEvent) -> Settlement | None:
        name = stored.value.partition(b'"id":"')[2].partition(b'"')[0]
        is_first = int(name) < CHUNK_LINES or name not in seen
        seen.add(name)
        return Settlement(problem="stale-stream") if is_first else None

    server.dispatcher.judge = judge
    body = b"\n".join(event(str(n)) for n in range(2 * CHUNK_LINES))
    answer = await post(server.port, ORDERS, body, NDJSON)
    assert {each["problem"]["status"] for each in answer.lines()[:-1]} == {503}
    assert not server.dispatcher.events()
