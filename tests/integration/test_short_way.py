"""The short way of plain POSTs answers as the application does, byte for byte, and keeps the order of a connection."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from fake_dispatcher import FakeContext
from produce_server import TIGHT_LIMIT, ProduceServer, produce_server, tight_settings
from raw_http import RawConnection, connected, request_bytes

from shared.errors import CdrsError, Overloaded, Unavailable
from shared.records import NewEvent, Settlement

ORDERS = "/v1/streams/orders/events"
JSON = {"Content-Type": "application/json"}
GET = request_bytes("GET", ORDERS)
STRUCTURED = {"Content-Type": "application/cloudevents+json"}
NDJSON = {"Content-Type": "application/x-ndjson"}
ROUNDS = 3
"""Learned, kept, used."""

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers() -> AsyncIterator[tuple[ProduceServer, ProduceServer]]:
    """With and without the short way."""
    settings = tight_settings()
    async with (
        produce_server(FakeContext(settings=settings)) as short,
        produce_server(FakeContext(settings=settings), has_shortcut=False) as long,
    ):
        yield short, long


@pytest.fixture
def server(servers: tuple[ProduceServer, ProduceServer]) -> ProduceServer:
    """The one with the short way, emptied, knowing its stream."""
    return knowing(servers[0].emptied())


def knowing(server: ProduceServer) -> ProduceServer:
    server.context.catalog.known["orders"] = 1
    return server


def post(body: bytes = b'{"a":1}', headers: dict[str, str] | None = None, target: str = ORDERS) -> bytes:
    return request_bytes("POST", target, body, JSON if headers is None else headers)


def lines(*values: bytes, headers: dict[str, str] | None = None) -> bytes:
    return post(b"\n".join(values), NDJSON | (headers or {}))


def event(**members: object) -> bytes:
    return json.dumps({"specversion": "1.0", "id": "1", "source": "/s", "type": "t", **members}).encode()


async def raw_answer(connection: RawConnection) -> bytes:
    async with asyncio.timeout(10):
        head = await connection.reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100"):
            return head + await raw_answer(connection)
        if b"transfer-encoding: chunked" in head:
            return head + await connection.reader.readuntil(b"\r\n0\r\n\r\n")
        length = re.search(rb"content-length: ([0-9]+)", head)
        assert length is not None, head
        return head + await connection.reader.readexactly(int(length[1]))


def plain(answer: bytes) -> bytes:
    """Without what differs from request to request."""
    answer = re.sub(rb"date: [^\r]+", b"date", answer)
    return re.sub(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", b"<id>", answer)


async def rounds(server: ProduceServer, request: bytes, *, rounds: int = ROUNDS) -> tuple[list[bytes], bool]:
    """The answers to the same request again and again on one connection, and whether it was closed then."""
    answers: list[bytes] = []
    async with connected(server.port) as connection:
        for _ in range(rounds):
            await connection.send(request)
            answers.append(plain(await raw_answer(connection)))
            if b"connection: close" in answers[-1]:
                return answers, await connection.at_end()
    return answers, False


NEVER = "never"
REQUESTS: dict[str, tuple[bytes, str]] = {
    "payload": (post(), "short"),
    "payload-with-breaks": (post(b' {"a":\r\n 1.50}\n'), "short"),
    "empty": (post(b"", JSON | {"Content-Length": "0"}), "short"),
    "not-json": (post(b"{"), "short"),
    "too-deep": (post(b"[" * 40 + b"]" * 40), "short"),
    "structured": (post(event(data=1), STRUCTURED), "short"),
    "structured-other-body": (post(event(data=2), STRUCTURED), "short"),
    "structured-nothing-but-data": (post(b' "data":1}', STRUCTURED), "short"),
    "structured-bad-source": (post(event(source=" "), STRUCTURED), "short"),
    "structured-other-stream": (post(event(cdrsstream="other"), STRUCTURED), "short"),
    "binary": (post(b"\x00\xff", {"ce-type": "x", "ce-id": "b", "Content-Type": "image/png"}), "short"),
    "binary-id-to-quote": (post(b"1", JSON | {"ce-id": "caf%C3%A9%2F1"}), "short"),
    "binary-bad-id": (post(b"1", JSON | {"ce-id": "#"}), "short"),
    "key": (post(b"1", JSON | {"Cdrs-Key": "k"}), "short"),
    "idempotency-key": (post(b"1", JSON | {"Idempotency-Key": '"a"'}), "short"),
    "close": (post(b"1", JSON | {"Connection": "close"}), "short"),
    "keep-alive": (post(b"1", JSON | {"Connection": "keep-alive"}), "short"),
    "names-in-other-case": (
        b"POST "
        + ORDERS.encode()
        + b" HTTP/1.1\r\nhOST:t\r\ncontent-TYPE:application/json\r\ncontent-LENGTH:1\r\n\r\n1",
        "short",
    ),
    "at-the-limit": (post(b'"' + b"x" * (TIGHT_LIMIT - 2) + b'"'), "short"),
    "beyond-the-limit": (post(b'"' + b"x" * TIGHT_LIMIT + b'"'), NEVER),
    "text": (post(b"x", {"Content-Type": "text/plain"}), NEVER),
    "no-type": (post(b"1", {}), NEVER),
    "two-types": (post(b"1", {"Content-Type": "application/json", "content-type": "text/plain"}), NEVER),
    "reserved-field": (post(b"1", JSON | {"Cdrs-Other": "1"}), NEVER),
    "encoded": (post(b"1", JSON | {"Content-Encoding": "gzip"}), NEVER),
    "batch": (post(b"[" + event() + b"]", {"Content-Type": "application/cloudevents-batch+json"}), NEVER),
    "query": (post(target=ORDERS + "?x=1"), NEVER),
    "escaped-path": (post(target="/v1/streams/order%73/events"), NEVER),
    "server-stream": (post(target="/v1/streams/cdrs.x/events"), NEVER),
    "bad-stream": (post(target="/v1/streams/a..b/events"), NEVER),
    "expect": (post(b"1", JSON | {"Expect": "100-continue"}), NEVER),
    "chunked": (post(b"1\r\n1\r\n0\r\n\r\n", JSON | {"Transfer-Encoding": "chunked"}), NEVER),
    "upgrade": (post(b"1", JSON | {"Connection": "Upgrade", "Upgrade": "websocket"}), NEVER),
    "http-1.0": (post(b"1").replace(b"HTTP/1.1", b"HTTP/1.0"), NEVER),
    "two-hosts": (post(b"1", JSON | {"host": "b"}), NEVER),
    "two-lengths": (post(b"1", JSON | {"Content-Length": "1", "content-length": "1"}), NEVER),
    "bare-lf": (post(b"1").replace(b"application/json\r\n", b"application/json\n"), NEVER),
    "override": (post(b"1", JSON | {"X-HTTP-Method-Override": "PUT"}), NEVER),
    "lines": (lines(b'{"a":1}', b"2", b""), "short"),
    "lines-without-last-end": (lines(b'{"a":1}', b"2"), "short"),
    "lines-and-empty-ones": (lines(b"1\r", b"", b" \t", b"2", b""), "short"),
    "lines-all-empty": (lines(b"", b" ", b"", b""), "short"),
    "lines-none": (post(b"", NDJSON | {"Content-Length": "0"}), "short"),
    "lines-wrong": (lines(b"1", b"{", b"[" * 40 + b"]" * 40, b'"\\u0031"', b"2"), "short"),
    "lines-all-wrong": (lines(b"{", b"}"), "short"),
    "lines-of-events": (lines(event(), event(id="2", data=[1]), event(source=" "), b"3"), "short"),
    "lines-repeated": (lines(event(), event(), event(data=1)), "short"),
    "lines-of-another-stream": (lines(event(cdrsstream="other"), b"1"), "short"),
    "lines-key": (lines(b"1", b"2", headers={"Cdrs-Key": "k"}), "short"),
    "lines-idempotency-key": (lines(b"1", b"2", headers={"Idempotency-Key": '"a"'}), "short"),
    "lines-close": (lines(b"1", headers={"Connection": "close"}), "short"),
    "lines-at-the-limit": (lines(b'"' + b"x" * (TIGHT_LIMIT - 2) + b'"', b"1"), "short"),
    "lines-beyond-the-limit": (lines(b'"' + b"x" * TIGHT_LIMIT + b'"', b"1"), "short"),
    "lines-most": (lines(*[b"1"] * 256), "short"),
    "lines-too-many": (lines(*[b"1"] * 257), NEVER),
    "lines-too-long": (lines(*[b'"' + b"x" * 1024 + b'"'] * 64), NEVER),
    "lines-errors-only": (post(b"1\n{\n2", NDJSON, ORDERS + "?receipts=errors"), "short"),
    "lines-other-query": (post(b"1\n", NDJSON, ORDERS + "?receipts=all"), NEVER),
    "errors-only": (post(b"1", JSON, ORDERS + "?receipts=errors"), NEVER),
    "lines-expect": (lines(b"1", headers={"Expect": "100-continue"}), NEVER),
    "lines-ce-field": (lines(b"1", headers={"ce-type": "x"}), "short"),
    "lines-many-streams": (post(event(cdrsstream="orders") + b"\n1", NDJSON, "/v1/events"), "short"),
    "lines-many-streams-errors-only": (
        post(event(cdrsstream="orders") + b"\n1", NDJSON, "/v1/events?receipts=errors"),
        "short",
    ),
    "lines-many-streams-none": (post(b"", NDJSON | {"Content-Length": "0"}, "/v1/events"), "short"),
    "many-streams": (post(event(cdrsstream="orders"), STRUCTURED, "/v1/events"), "short"),
    "many-streams-binary": (
        post(b"1", JSON | {"ce-type": "x", "ce-id": "b", "ce-cdrsstream": "orders"}, "/v1/events"),
        "short",
    ),
    "many-streams-none": (post(event(), STRUCTURED, "/v1/events"), "short"),
    "many-streams-payload": (post(b"1", JSON, "/v1/events"), "short"),
    "many-streams-bad": (post(event(cdrsstream="a..b"), STRUCTURED, "/v1/events"), "short"),
    "many-streams-errors-only": (
        post(event(cdrsstream="orders"), STRUCTURED, "/v1/events?receipts=errors"),
        NEVER,
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_both_ways_answer_alike(servers: tuple[ProduceServer, ProduceServer], name: str) -> None:
    request, way = REQUESTS[name]
    short, long = (knowing(server.emptied()) for server in servers)
    answers = await rounds(short, request)
    assert answers == await rounds(long, request)
    assert [plain(value) for value in short.dispatcher.values()] == [plain(value) for value in long.dispatcher.values()]
    for result in ("stored", "duplicate", "refused", "failed"):
        assert short.context.ingested(result) == long.context.ingested(result)
    assert short.shortcut is not None
    assert short.shortcut.taken == (len(answers[0]) if way == "short" else 0)


def settled(problem: str) -> Callable[[NewEvent], Settlement | None]:
    return lambda _event: Settlement(problem=problem, detail="because")


@pytest.mark.parametrize(
    "problem", ["unavailable", "outcome-unknown", "stale-epoch", "stale-stream", "idempotency-mismatch", "overloaded"]
)
async def test_both_ways_tell_alike_how_an_event_was_settled(
    servers: tuple[ProduceServer, ProduceServer], problem: str
) -> None:
    for request in (post(), lines(b"1", b"2")):
        answers = []
        for server in servers:
            knowing(server.emptied()).dispatcher.judge = settled(problem)
            answers.append((await rounds(server, request), server.context.ingested("failed")))
        assert answers[0] == answers[1]
        assert b"because" in answers[0][0][0][-1]


@pytest.mark.parametrize("error", [Overloaded("full", retry_after=2.5), Unavailable("no node")])
async def test_both_ways_refuse_alike_what_the_dispatcher_does_not_take(
    servers: tuple[ProduceServer, ProduceServer], error: CdrsError
) -> None:
    answers = []
    for server in servers:
        knowing(server.emptied()).dispatcher.refuse = lambda: error
        answers.append(await rounds(server, post()))
    assert answers[0] == answers[1]
    assert answers[0][0][-1].startswith(b"HTTP/1.1 503 ")


BATCH = {"Content-Type": "application/cloudevents-batch+json"}


def batch(count: int, headers: dict[str, str] | None = None) -> bytes:
    body = b"[" + b",".join(event(id=str(n)) for n in range(count)) + b"]"
    return post(body, BATCH | (headers or {}))


def full() -> None:
    raise Overloaded("events would wait too long for their turn", retry_after=1)


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}, {"Idempotency-Key": '"a"'}])
async def test_both_ways_refuse_a_batch_alike_where_there_is_no_room(
    servers: tuple[ProduceServer, ProduceServer], headers: dict[str, str]
) -> None:
    told = []
    for server in servers:
        knowing(server.emptied()).dispatcher.check = full  # type: ignore[method-assign]
        answers = [await rounds(server, batch(count, headers)) for count in (1, 2, 5, 50)]
        told.append((answers, server.context.ingested("failed"), server.dispatcher.submissions))
    assert told[0] == told[1]
    assert all(answer.startswith(b"HTTP/1.1 503 ") for answers, _ in told[0][0] for answer in answers)


async def test_a_batch_is_refused_by_its_head_and_its_body_is_thrown_away(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        for _ in range(2):
            await connection.send(batch(2))
            assert (await raw_answer(connection)).startswith(b"HTTP/1.1 20")
        stored = len(server.dispatcher.events())
        server.dispatcher.check = full  # type: ignore[method-assign]
        for request in (batch(3), batch(4)):
            head = request.index(b"\r\n\r\n") + 4
            for cut in (head, head + 1, len(request) - 1):
                await connection.send(request[:cut])
                assert (await raw_answer(connection)).startswith(b"HTTP/1.1 503 "), "before the rest has come"
                await connection.send(request[cut:] + GET)
                assert (await raw_answer(connection)).startswith(b"HTTP/1.1 200 ")
        await connection.send(batch(5) * 3 + GET)
        answers = [await raw_answer(connection) for _ in range(4)]
        assert [answer[9:12] for answer in answers] == [b"503", b"503", b"503", b"200"]
    assert len(server.dispatcher.events()) == stored


async def test_the_rest_of_a_refused_batch_is_not_waited_for_for_ever(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        await connection.send(batch(2))
        await raw_answer(connection)
        server.dispatcher.check = full  # type: ignore[method-assign]
        await connection.send(batch(2)[:-5])
        assert (await raw_answer(connection)).startswith(b"HTTP/1.1 503 ")
        answer = await connection.answer()
        assert (answer.status, answer.problem) == (408, "request-timeout")
        assert await connection.at_end()


@pytest.mark.parametrize("kind", [JSON, NDJSON])
async def test_fields_are_known_whatever_the_length(
    servers: tuple[ProduceServer, ProduceServer], kind: dict[str, str]
) -> None:
    """They are read by the parser twice, and a length that is too long is still seen."""
    told = []
    for server in servers:
        knowing(server.emptied())
        answers = []
        async with connected(server.port) as connection:
            for size in (1, 2, 3, 2, 50, 4):
                await connection.send(post(b"1" * size, kind | {"X-Client": "one"}))
                answers.append(plain(await raw_answer(connection)))
            await connection.send(post(b'"' + b"x" * TIGHT_LIMIT + b'"', kind | {"X-Client": "one"}))
            answers.append(plain(await raw_answer(connection)))
        told.append((answers, server.context.ingested("stored"), server.context.ingested("refused")))
    assert told[0] == told[1]
    assert told[0][1:] == (6, 1)
    assert servers[0].shortcut is not None
    assert servers[0].shortcut.taken == 6 + (kind is NDJSON)


async def test_lines_for_which_there_is_no_room_are_held_up_by_the_application(
    servers: tuple[ProduceServer, ProduceServer],
) -> None:
    server = knowing(servers[0].emptied())
    refusals = iter([Overloaded("full", retry_after=1)] * 3)
    server.dispatcher.refuse = lambda: next(refusals, None)
    answers, _ = await rounds(server, lines(b"1", b"2"), rounds=2)
    assert [b'"stored":2' in answer for answer in answers] == [True, True]
    assert server.shortcut is not None
    assert server.shortcut.taken == 1
    assert server.dispatcher.submissions == [2, 2]


async def test_lines_of_an_unknown_stream_are_asked_for_by_the_application(server: ProduceServer) -> None:
    server.context.catalog.known.clear()
    server.context.catalog.spreads["orders"] = 4
    answers, _ = await rounds(server, lines(b"1", b"2"))
    assert server.context.catalog.asked == ["orders"]
    assert server.shortcut is not None
    assert server.shortcut.taken == ROUNDS - 1
    assert all(b'"stored":2' in answer for answer in answers)


async def test_a_fault_before_lines_are_stored_is_the_applications(
    servers: tuple[ProduceServer, ProduceServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*_: object) -> None:
        raise RuntimeError("canary-in-an-exception")

    monkeypatch.setattr("gateway.lines.Lines.build", faulty)
    answers = [await rounds(knowing(server.emptied()), lines(b"1")) for server in servers]
    assert answers[0] == answers[1]
    assert answers[0][0][0].startswith(b"HTTP/1.1 500 ")


async def test_a_fault_of_answering_lines_is_answered(server: ProduceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object) -> None:
        raise RuntimeError("canary-in-an-exception")

    monkeypatch.setattr("gateway.lines.Lines.answers", faulty)
    answers, _ = await rounds(server, lines(b"1"))
    assert [answer.split(b"\r\n", 1)[0] for answer in answers] == [b"HTTP/1.1 500 Internal Server Error"] * ROUNDS


@pytest.mark.parametrize(
    "request_",
    [
        post(b"1", JSON | {"Cdrs-Key": "k"}),
        post(event(cdrsstream="orders", partitionkey="k"), STRUCTURED, "/v1/events"),
    ],
    ids=["one-stream", "many-streams"],
)
async def test_an_unknown_stream_is_asked_for_by_the_application(
    servers: tuple[ProduceServer, ProduceServer], request_: bytes
) -> None:
    server = servers[0].emptied()
    assert server.shortcut is not None
    server.context.catalog.spreads["orders"] = 4
    answers, _ = await rounds(server, request_)
    assert server.context.catalog.asked == ["orders"]
    assert server.shortcut.taken == ROUNDS - 1
    assert len({re.search(rb'"partition":\d+', answer)[0] for answer in answers}) == 1  # type: ignore[index]


async def test_what_is_known_of_a_stream_may_run_out_in_the_middle(server: ProduceServer) -> None:
    """Routed by no spread at all, the event would make a stream of spread 0."""
    catalog = server.context.catalog
    known = catalog.cached_spread
    asked: list[str] = []

    def once(stream: str) -> int | None:
        asked.append(stream)
        return 1 if len(asked) == 1 else known(stream)

    catalog.known.clear()
    catalog.cached_spread = once  # type: ignore[method-assign]
    answers, _ = await rounds(server, post(), rounds=1)
    assert answers[0].startswith(b"HTTP/1.1 201 ")
    assert [stored.spread for stored in server.dispatcher.events()] == [1]
    assert server.shortcut is not None
    assert not server.shortcut.taken


async def test_a_fault_of_the_short_way_is_answered(
    servers: tuple[ProduceServer, ProduceServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*_: object) -> None:
        raise RuntimeError("canary-in-an-exception")

    monkeypatch.setattr("shared.events.EventBuilder.payload", faulty)
    answers = [await rounds(knowing(server.emptied()), post()) for server in servers]
    assert answers[0] == answers[1]
    assert [answer.split(b"\r\n", 1)[0] for answer in answers[0][0]] == [b"HTTP/1.1 500 Internal Server Error"] * ROUNDS


async def test_a_stream_created_meanwhile_is_routed_anew(server: ProduceServer) -> None:
    server.context.catalog.spreads["orders"] = 12
    server.dispatcher.judge = lambda stored: Settlement(problem="stale-stream") if stored.spread == 1 else None
    answers, _ = await rounds(server, post(), rounds=1)
    assert answers[0].startswith(b"HTTP/1.1 201 ")
    assert [stored.spread for stored in server.dispatcher.events()] == [12]


async def test_lines_of_a_stream_created_meanwhile_are_routed_anew(server: ProduceServer) -> None:
    server.context.catalog.spreads["orders"] = 12
    server.dispatcher.judge = lambda stored: Settlement(problem="stale-stream") if stored.spread == 1 else None
    answers, _ = await rounds(server, lines(b"1", b"2"), rounds=1)
    assert b'"stored":2' in answers[0]
    assert [stored.spread for stored in server.dispatcher.events()] == [12, 12]


# --- order on a connection ---------------------------------------------------------------------------


async def submitted(server: ProduceServer, count: int) -> None:
    async with asyncio.timeout(10):
        while len(server.dispatcher.submissions) < count:
            await asyncio.sleep(0.002)


async def test_pipelined_requests_are_answered_in_order_and_one_at_a_time(server: ProduceServer) -> None:
    server.dispatcher.gate.clear()
    async with connected(server.port) as connection:
        bodies = [b"%d" % n for n in range(5)]
        await connection.send(b"".join(post(body) for body in bodies) + GET + post(b"{") + post(b'"last"'))
        await submitted(server, 1)
        await connection.send(request_bytes("GET", "/nowhere"))
        server.dispatcher.gate.set()
        found = [await raw_answer(connection) for _ in range(9)]
    statuses = [int(answer.split()[1]) for answer in found]
    assert statuses == [201, 201, 201, 201, 201, 200, 400, 201, 404]
    stored = [value.rsplit(b":", 1)[1] for value in server.dispatcher.values()]
    assert stored == [body + b"}" for body in [*bodies, b'"last"']]
    assert [json.loads(a.partition(b"\r\n\r\n")[2])["offset"] for a in found[:5]] == ["0", "1", "2", "3", "4"]


async def test_lines_sent_ahead_are_answered_in_order_and_one_at_a_time(server: ProduceServer) -> None:
    server.dispatcher.gate.clear()
    async with connected(server.port) as connection:
        await connection.send(lines(b"1", b"2") + post(b"3") + lines(b"4") + GET + lines(b"{", b"5"))
        await submitted(server, 1)
        await asyncio.sleep(0.02)
        assert server.dispatcher.submissions == [2]
        server.dispatcher.gate.set()
        found = [await raw_answer(connection) for _ in range(5)]
    assert [int(answer.split()[1]) for answer in found] == [200, 201, 200, 200, 200]
    assert [value.rsplit(b":", 1)[1] for value in server.dispatcher.values()] == [b"%d}" % n for n in range(1, 6)]


async def test_a_held_request_is_not_stored_before_the_one_before_it_is_answered(server: ProduceServer) -> None:
    server.dispatcher.gate.clear()
    async with connected(server.port) as connection:
        await connection.send(post(b"1") + post(b"2"))
        await submitted(server, 1)
        await asyncio.sleep(0.02)
        assert server.dispatcher.submissions == [1]
        server.dispatcher.gate.set()
        await raw_answer(connection)
        await raw_answer(connection)
    assert len(server.dispatcher.events()) == 2


async def test_after_a_short_way_the_connection_serves_everything(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        for _ in range(3):
            for _ in range(2):
                assert (await connection.request("POST", ORDERS, b"1", JSON)).status == 201
            assert (await connection.request("GET", ORDERS)).status == 200
            assert (await connection.request("HEAD", ORDERS)).status == 200
            assert (await connection.request("GET", "/nowhere")).status == 404


@pytest.mark.parametrize("cut", [1, 30, 60, -4, -1])
async def test_a_request_may_come_in_pieces(server: ProduceServer, cut: int) -> None:
    request = post(b'{"a":1}')
    async with connected(server.port) as connection:
        for _ in range(4):
            await connection.send(request[:cut])
            await asyncio.sleep(0.005)
            await connection.send(request[cut:])
            assert (await raw_answer(connection)).startswith(b"HTTP/1.1 201 ")
            await connection.send(request)
            assert (await raw_answer(connection)).startswith(b"HTTP/1.1 201 ")
    assert len(server.dispatcher.events()) == 8


async def test_a_body_that_comes_late_is_the_applications_to_wait_for(server: ProduceServer) -> None:
    request = post(b'{"a":1}')
    async with connected(server.port) as connection:
        for _ in range(3):
            await connection.send(request)
            await raw_answer(connection)
        await connection.send(request[:-3])
        await asyncio.sleep(0.15)
        await connection.send(request[-3:] + post(b"2"))
        assert (await raw_answer(connection)).startswith(b"HTTP/1.1 201 ")
        assert (await raw_answer(connection)).startswith(b"HTTP/1.1 201 ")
        await connection.send(request[:-3])
        answer = await connection.answer()
        assert (answer.status, answer.problem) == (408, "request-timeout")
        assert await connection.at_end()


async def test_a_body_that_was_cut_stores_nothing(server: ProduceServer) -> None:
    request = post(b'{"a":1}')
    async with connected(server.port) as connection:
        for _ in range(3):
            await connection.send(request)
            await raw_answer(connection)
        await connection.send(request[:-3])
        connection.writer.write_eof()
        answer = await connection.answer()
        assert (answer.status, answer.problem) == (400, "invalid-request")
        assert await connection.at_end()
    assert len(server.dispatcher.events()) == 3


async def test_a_client_that_ends_its_side_gets_every_answer(server: ProduceServer) -> None:
    server.dispatcher.gate.clear()
    async with connected(server.port) as connection:
        await connection.send(post(b"1") + post(b"2") + post(b"3"))
        connection.writer.write_eof()
        await submitted(server, 1)
        server.dispatcher.gate.set()
        answers = [await raw_answer(connection) for _ in range(3)]
        assert await connection.at_end()
    assert [b"connection: close" in answer for answer in answers] == [False, False, True]


async def test_what_a_client_sent_that_went_away_is_stored_and_harms_nobody(server: ProduceServer) -> None:
    server.dispatcher.gate.clear()
    async with connected(server.port) as connection:
        await connection.send(post(b"1"))
        await submitted(server, 1)
    async with connected(server.port) as other:
        await other.send(post(b"2"))
        await submitted(server, 2)
        server.dispatcher.gate.set()
        assert (await raw_answer(other)).startswith(b"HTTP/1.1 201 ")
    assert server.context.ingested("stored") == 2


@pytest.mark.parametrize("way", [0, 1])
async def test_thousands_of_pipelined_requests_are_answered_in_order(
    servers: tuple[ProduceServer, ProduceServer], way: int
) -> None:
    """More than the server reads at once, and more answers than the socket takes."""
    server, count = knowing(servers[way].emptied()), 3000
    async with connected(server.port) as connection:
        connection.writer.write(b"".join(post(b"%d" % n) for n in range(count)))
        answers = [await raw_answer(connection) for _ in range(count)]
    assert {answer[:13] for answer in answers} == {b"HTTP/1.1 201 "}
    stored = [value.rsplit(b":", 1)[1] for value in server.dispatcher.values()]
    assert stored == [b"%d}" % n for n in range(count)]


@pytest.mark.asyncio(loop_scope="function")
async def test_a_server_that_leaves_answers_what_it_took() -> None:
    async with produce_server() as server:
        knowing(server).dispatcher.gate.clear()
        async with connected(server.port) as connection, connected(server.port) as idle:
            await connection.send(post(b"1") + post(b"2"))
            await submitted(server, 1)
            server.stop.set()
            assert await idle.at_end()
            server.dispatcher.gate.set()
            first, second = await raw_answer(connection), await raw_answer(connection)
            assert (b"connection: close" in first, b"connection: close" in second) == (False, True)
            assert await connection.at_end()


@pytest.mark.asyncio(loop_scope="function")
async def test_unlike_requests_push_nothing_out_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.shortcut.KEPT", 4)
    async with produce_server() as server:
        async with connected(knowing(server).port) as connection:
            for n in range(60):
                headers = JSON | {"X-Request-Id": str(n // 3)}
                assert (await connection.request("POST", ORDERS, b"1", headers)).status == 201
        assert server.shortcut is not None
        assert server.shortcut.kept <= 4
        assert server.shortcut.taken == 60
