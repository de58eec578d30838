"""Producing as a client sees it: content types, receipts, duplicates, batches."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import pytest
from fake_dispatcher import EPOCH
from produce_server import ProduceServer, produce_server
from raw_http import chunked, connected, get, post, request_bytes

from shared.errors import Overloaded, Unavailable
from shared.partitioning import partition_of
from shared.position import Cursor
from shared.records import DataKind, NewEvent, Settlement

ORDERS = "/v1/streams/orders/events"
STRUCTURED = {"Content-Type": "application/cloudevents+json"}
BATCH = {"Content-Type": "application/cloudevents-batch+json"}


@pytest.fixture
async def server() -> AsyncIterator[ProduceServer]:
    async with produce_server() as running:
        yield running


def event(**members: object) -> dict[str, object]:
    return {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order", **members}


async def test_curl_json(server: ProduceServer) -> None:
    answer = await post(server.port, ORDERS, b' {"total": 1.50,\r\n "n": 12345678901234567890123} \n')
    assert answer.status == 201
    receipt = answer.json()
    assert list(receipt) == ["id", "stream", "cursor", "epoch", "partition", "offset", "duplicate"]
    assert receipt["stream"] == "orders"
    assert receipt["epoch"] == str(EPOCH)
    assert receipt["partition"] == partition_of("orders", None, receipt["id"], partitions=12)
    assert receipt["offset"] == "0"
    assert receipt["duplicate"] is False
    assert Cursor.decode(receipt["cursor"]) == Cursor(EPOCH, {receipt["partition"]: 1})
    assert answer.headers["location"] == f"{ORDERS}/{receipt['id']}"
    (stored,) = server.dispatcher.events()
    assert stored.value.endswith(b',"data":{"total": 1.50,   "n": 12345678901234567890123}}')
    attributes = json.loads(stored.value)
    del attributes["data"]
    assert attributes == {
        "specversion": "1.0",
        "id": receipt["id"],
        "source": "/v1/streams/orders",
        "type": "event",
        "cdrsstream": "orders",
    }
    assert stored.fresh
    assert server.context.ingested("stored") == 1


async def test_binary_mode(server: ProduceServer) -> None:
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "caf%C3%A9%2525",
        "ce-source": "/shop",
        "ce-type": "order",
        "ce-partitionkey": "k1",
        "ce-subject": '"a \\"b\\""',
    }
    answer = await post(server.port, ORDERS, b'{"a":1}', headers)
    assert answer.status == 201
    assert answer.json()["id"] == "café%25"
    (stored,) = server.dispatcher.events()
    assert stored.key == "k1"
    assert not stored.fresh
    assert json.loads(stored.value) == {
        "specversion": "1.0",
        "id": "café%25",
        "source": "/shop",
        "type": "order",
        "partitionkey": "k1",
        "subject": 'a "b"',
        "cdrsstream": "orders",
        "datacontenttype": "application/json",
        "data": {"a": 1},
    }


@pytest.mark.parametrize(
    ("content_type", "body", "kind", "data"),
    [
        ("text/plain; charset=UTF-8", "zwei\r\nZeilen ✓".encode(), DataKind.TEXT, {"data": "zwei\r\nZeilen ✓"}),
        (
            "application/octet-stream",
            b"\x00\xff",
            DataKind.BASE64,
            {"data_base64": base64.b64encode(b"\x00\xff").decode()},
        ),
        ("application/geo+json", b"[1]", DataKind.JSON, {"data": [1]}),
        ("image/png", b"", DataKind.NONE, {}),
    ],
)
async def test_binary_mode_takes_any_content_type(
    server: ProduceServer, content_type: str, body: bytes, kind: DataKind, data: dict[str, object]
) -> None:
    headers = {"ce-type": "x", "Content-Type": content_type, "Content-Length": str(len(body))}
    answer = await post(server.port, ORDERS, body, headers)
    assert answer.status == 201
    (stored,) = server.dispatcher.events()
    value = json.loads(stored.value)
    assert stored.kind == kind
    assert value["datacontenttype"] == content_type
    assert {name: value[name] for name in ("data", "data_base64") if name in value} == data


async def test_structured_mode(server: ProduceServer) -> None:
    body = json.dumps(event(data={"a": [1, 2]}, comexampleother=5, time="2015-09-12T00:46:58.771Z"), indent=1).encode()
    answer = await post(server.port, ORDERS, body, STRUCTURED)
    assert answer.status == 201
    assert answer.json()["id"] == "1"
    (stored,) = server.dispatcher.events()
    assert b"\n" not in stored.value
    assert list(json.loads(stored.value)) == [
        "specversion",
        "id",
        "source",
        "type",
        "comexampleother",
        "time",
        "cdrsstream",
        "data",
    ]


async def test_same_event_again_is_answered_with_its_first_place(server: ProduceServer) -> None:
    body = json.dumps(event(data=1)).encode()
    first = await post(server.port, ORDERS, body, STRUCTURED)
    second = await post(server.port, ORDERS, body, STRUCTURED)
    assert (first.status, second.status) == (201, 200)
    assert second.json() == first.json() | {"duplicate": True}
    assert len(server.dispatcher.events()) == 1


async def test_same_id_with_another_body_is_refused(server: ProduceServer) -> None:
    await post(server.port, ORDERS, json.dumps(event(data=1)).encode(), STRUCTURED)
    answer = await post(server.port, ORDERS, json.dumps(event(data=2)).encode(), STRUCTURED)
    assert (answer.status, answer.problem) == (422, "idempotency-mismatch")


async def test_idempotency_key(server: ProduceServer) -> None:
    first = await post(server.port, ORDERS, b"1", {"Idempotency-Key": '"a b"'})
    again = await post(server.port, ORDERS, b"1", {"Idempotency-Key": '"a b"'})
    other = await post(server.port, ORDERS, b"1", {"Idempotency-Key": '"c"'})
    elsewhere = await post(server.port, "/v1/streams/bills/events", b"1", {"Idempotency-Key": '"a b"'})
    assert [a.status for a in (first, again, other, elsewhere)] == [201, 200, 201, 201]
    assert len({a.json()["id"] for a in (first, again, other, elsewhere)}) == 3
    assert not any(stored.fresh for stored in server.dispatcher.events())


async def test_many_streams(server: ProduceServer) -> None:
    one = await post(server.port, "/v1/events", json.dumps(event(cdrsstream="a.b", data=1)).encode(), STRUCTURED)
    assert (one.status, one.json()["stream"]) == (201, "a.b")
    binary = await post(server.port, "/v1/events", b"1", {"ce-cdrsstream": "c", "ce-type": "t"})
    assert (binary.status, binary.json()["stream"]) == (201, "c")
    assert b'"source":"/v1/streams/c"' in server.dispatcher.values()[-1]
    bare = await post(server.port, "/v1/events", b"1")
    assert (bare.status, bare.problem) == (400, "invalid-stream")


async def test_batch(server: ProduceServer) -> None:
    items = [event(id=str(n), data=n) for n in range(3)]
    first = await post(server.port, ORDERS, json.dumps(items).encode(), BATCH)
    assert first.status == 201
    assert [item["id"] for item in first.json()] == ["0", "1", "2"]
    assert [item["offset"] for item in first.json()] == ["0", "1", "2"]
    again = await post(server.port, ORDERS, json.dumps(items).encode(), BATCH)
    assert again.status == 200
    assert all(item["duplicate"] for item in again.json())
    mixed = await post(server.port, ORDERS, json.dumps([items[0], event(id="new")]).encode(), BATCH)
    assert mixed.status == 207
    assert [item["duplicate"] for item in mixed.json()] == [True, False]


async def test_batch_with_one_event_twice(server: ProduceServer) -> None:
    answer = await post(server.port, ORDERS, json.dumps([event(), event()]).encode(), BATCH)
    assert answer.status == 207
    assert [item["duplicate"] for item in answer.json()] == [False, True]
    assert len(server.dispatcher.events()) == 1


async def test_a_spread_stream_is_asked_for_once_and_routed_by_key(server: ProduceServer) -> None:
    server.context.catalog.spreads["orders"] = 4
    used = set()
    for n in range(24):
        answer = await post(server.port, ORDERS, b"1", {"Cdrs-Key": f"k{n}"})
        partition = answer.json()["partition"]
        assert partition == partition_of("orders", f"k{n}", "", partitions=12, spread=4)
        used.add(partition)
    assert len(used) == 4
    assert server.context.catalog.asked == ["orders"]
    assert {stored.spread for stored in server.dispatcher.events()} == {4}


async def test_a_stream_created_meanwhile_is_routed_anew(server: ProduceServer) -> None:
    catalog = server.context.catalog
    catalog.known["orders"] = 1
    catalog.spreads["orders"] = 12

    def judge(stored: NewEvent) -> Settlement | None:
        return Settlement(problem="stale-stream") if stored.spread == 1 else None

    server.dispatcher.judge = judge
    answer = await post(server.port, ORDERS, b"1", {"Cdrs-Key": "k"})
    assert answer.status == 201
    assert answer.json()["partition"] == partition_of("orders", "k", "", partitions=12, spread=12)


async def test_header_key_becomes_the_partition_key_unless_the_event_has_one(server: ProduceServer) -> None:
    await post(server.port, ORDERS, b"1", {"Cdrs-Key": "%C3%A9"})
    await post(server.port, ORDERS, json.dumps(event(partitionkey="own")).encode(), STRUCTURED | {"Cdrs-Key": "k"})
    assert [stored.key for stored in server.dispatcher.events()] == ["é", "own"]
    assert [json.loads(value)["partitionkey"] for value in server.dispatcher.values()] == ["é", "own"]


@pytest.mark.parametrize("problem", ["unavailable", "stale-stream", "stale-epoch"])
async def test_not_stored_is_503_with_retry_after(server: ProduceServer, problem: str) -> None:
    server.dispatcher.judge = lambda _event: Settlement(problem=problem)
    answer = await post(server.port, ORDERS, b"1")
    assert (answer.status, answer.problem) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert server.context.ingested("failed") == 1


async def test_unknown_outcome_is_504_with_the_id_to_retry(server: ProduceServer) -> None:
    server.dispatcher.judge = lambda _event: Settlement(problem="outcome-unknown")
    answer = await post(server.port, ORDERS, b"1")
    assert (answer.status, answer.problem) == (504, "outcome-unknown")
    assert len(answer.json()["id"]) == 36


async def test_full_queues_and_no_node_are_503(server: ProduceServer) -> None:
    server.dispatcher.refuse = lambda: Overloaded("full", retry_after=2.5)
    answer = await post(server.port, ORDERS, b"1")
    assert (answer.status, answer.problem, answer.headers["retry-after"]) == (503, "overloaded", "3")
    server.dispatcher.refuse = lambda: Unavailable("no node")
    answer = await post(server.port, ORDERS, json.dumps([event()]).encode(), BATCH)
    assert (answer.status, answer.problem) == (503, "unavailable")


async def test_a_batch_of_which_nothing_could_be_stored_is_503(server: ProduceServer) -> None:
    server.dispatcher.judge = lambda _event: Settlement(problem="unavailable")
    answer = await post(server.port, ORDERS, json.dumps([event()]).encode(), BATCH)
    assert (answer.status, answer.problem) == (503, "unavailable")


async def test_a_batch_of_unknown_outcome_names_the_ids(server: ProduceServer) -> None:
    server.dispatcher.judge = lambda stored: (
        Settlement(problem="outcome-unknown") if b'"id":"2"' in stored.value else None
    )
    answer = await post(server.port, ORDERS, json.dumps([event(), event(id="2")]).encode(), BATCH)
    assert answer.status == 207
    good, unknown = answer.json()
    assert good["id"] == "1"
    assert (unknown["index"], unknown["status"], unknown["problem"]["id"]) == (1, 504, "2")


async def test_chunked_bodies_and_keep_alive(server: ProduceServer) -> None:
    headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
    async with connected(server.port) as connection:
        for _ in range(3):
            answer = await connection.request("POST", ORDERS, chunked(b'{"a"', b":1}"), headers)
            assert answer.status == 201
            answer = await connection.request("POST", ORDERS, b"{", {"Content-Type": "application/json"})
            assert answer.status == 400
            answer = await connection.request("GET", ORDERS)
            assert answer.status == 200


async def test_a_producer_may_end_its_side_and_wait(server: ProduceServer) -> None:
    server.dispatcher.gate.clear()
    async with connected(server.port) as connection:
        await connection.send(request_bytes("POST", ORDERS, b"1", {"Content-Type": "application/json"}))
        connection.writer.write_eof()
        while not server.dispatcher.submissions:
            await asyncio.sleep(0.005)
        server.dispatcher.gate.set()
        answer = await connection.answer()
        assert answer.status == 201
        assert answer.headers["connection"] == "close"
        assert await connection.at_end()


async def test_problem_pages(server: ProduceServer) -> None:
    page = await get(server.port, "/problems/too-deep")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    assert b"32 levels" in page.body
    said = (await get(server.port, "/problems/too-deep", {"Accept": "application/json"})).json()
    assert said["status"] == 400
    assert said["type"] == "/problems/too-deep"
    index = await get(server.port, "/problems")
    assert b'href="/problems/too-deep"' in index.body
    listed = (await get(server.port, "/problems", {"Accept": "application/json"})).json()["problems"]
    for problem in listed:
        assert (await get(server.port, problem["type"])).status == 200
        assert problem["description"]
    missing = await get(server.port, "/problems/none")
    assert (missing.status, missing.problem) == (404, "not-found")
