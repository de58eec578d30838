"""The bad-input catalogue, entries that concern producing, header fields, methods and bodies. Each case is named for
its entry. Nothing of what is refused is stored, and no answer repeats the canary that every input carries."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
from fake_dispatcher import FakeContext
from produce_server import TIGHT_LIMIT as LIMIT
from produce_server import ProduceServer, produce_server, tight_settings
from raw_http import connected, get

CANARY = "canary7f"
ORDERS = "/v1/streams/orders/events"
JSON = {"Content-Type": "application/json"}
STRUCTURED = {"Content-Type": "application/cloudevents+json"}
BATCH = {"Content-Type": "application/cloudevents-batch+json"}
BINARY = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t", **JSON}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server() -> AsyncIterator[ProduceServer]:
    async with produce_server(FakeContext(settings=tight_settings())) as running:
        yield running


@pytest.fixture
def server(shared_server: ProduceServer) -> ProduceServer:
    """The one server, emptied."""
    return shared_server.emptied()


def event(**members: object) -> bytes:
    return json.dumps({"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": CANARY} | members).encode()


def nested(depth: int) -> bytes:
    return b"[" * depth + b'"%s"' % CANARY.encode() + b"]" * depth


@dataclass
class Bad:
    name: str
    problem: str
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=lambda: JSON)
    target: str = ORDERS
    status: int = 400
    method: str = "POST"


QUOTED = json.dumps(CANARY).encode()

CASES = [
    Bad("B1-not-json", "malformed-json", CANARY.encode()),
    Bad("B1-empty", "malformed-json", b"", JSON | {"Content-Length": "0"}),
    Bad("B1-blank", "malformed-json", b" \r\n"),
    Bad("B1-bom", "malformed-json", b"\xef\xbb\xbf"),
    Bad("B1-bom-and-json", "malformed-json", b"\xef\xbb\xbf" + QUOTED),
    Bad("B1-utf16", "malformed-json", json.dumps(CANARY).encode("utf-16")),
    Bad("B1-two-values", "malformed-json", QUOTED + QUOTED),
    Bad("B1-structured", "malformed-json", event()[:-1], STRUCTURED),
    Bad("B1-batch", "malformed-json", b"[" + event(), BATCH),
    Bad("B3-invalid-utf8", "malformed-json", b'"' + CANARY.encode() + b'\xff"'),
    Bad("B3-lone-surrogate", "malformed-json", b'"' + CANARY.encode() + b'\\ud800"'),
    Bad("B3-encoded-surrogate", "malformed-json", b'"\xed\xa0\x80"'),
    Bad("B3-lone-surrogate-beside-a-huge-number", "malformed-json", b'[1e999,"\\udc00"]'),
    Bad("B3-structured", "malformed-json", event().replace(b'"1"', b'"\\ud800"'), STRUCTURED),
    Bad("B4-nan", "malformed-json", b'{"a":NaN}'),
    Bad("B4-infinity", "malformed-json", b'{"a":-Infinity}'),
    Bad("B4-nan-beside-a-huge-number", "malformed-json", b"[1e999,NaN]"),
    Bad("B5-too-deep", "too-deep", nested(33)),
    Bad("B5-far-too-deep", "too-deep", b"[" * 2000),
    Bad("B5-structured", "too-deep", event().replace(QUOTED, nested(33)), STRUCTURED),
    Bad("B5-mixed", "too-deep", b'{"a":[' * 17 + b"1" + b"]}" * 17),
    Bad("B7-duplicate-member", "duplicate-key", event()[:-1] + b',"id":"2"}', STRUCTURED),
    Bad("B7-duplicate-data", "duplicate-key", event()[:-1] + b',"data":2}', STRUCTURED),
    Bad("B7-duplicate-by-escape", "duplicate-key", event()[:-1] + b',"\\u0069d":"2"}', STRUCTURED),
    Bad("B7-duplicate-header", "duplicate-key", b"{}", BINARY | {"CE-ID": "2"}),
    Bad("B8-members", "too-many-fields", event(**{f"a{n}": 1 for n in range(61)}), STRUCTURED),
    Bad("B8-name", "field-too-long", event(**{"a" * 65: 1}), STRUCTURED),
    Bad("B8-value", "field-too-long", event(a="x" * 4090 + CANARY), STRUCTURED),
    Bad("B8-value-in-bytes", "field-too-long", event(a="%" * 2049).replace(b"%", "é".encode()), STRUCTURED),
    Bad("B9-with-length", "payload-too-large", QUOTED.ljust(LIMIT + 1), status=413),
    Bad("B9-batch", "batch-too-large", b" " * (4 * LIMIT + 1), BATCH, status=413),
    Bad("B9-structured", "payload-too-large", event().ljust(LIMIT + 1), STRUCTURED, status=413),
    Bad("B11-gzip", "unsupported-encoding", b"\x1f\x8b", JSON | {"Content-Encoding": "gzip"}, status=415),
    Bad("B12-unknown", "unsupported-encoding", headers=JSON | {"Content-Encoding": CANARY}, status=415),
    Bad("B12-stacked", "unsupported-encoding", headers=JSON | {"Content-Encoding": "identity, gzip"}, status=415),
    Bad("B13-none", "unsupported-media-type", headers={}, status=415),
    Bad("B13-text", "unsupported-media-type", headers={"Content-Type": "text/plain"}, status=415),
    Bad(
        "B13-form", "unsupported-media-type", headers={"Content-Type": "application/x-www-form-urlencoded"}, status=415
    ),
    Bad(
        "B13-multipart",
        "unsupported-media-type",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
        status=415,
    ),
    Bad("B13-other-json", "unsupported-media-type", headers={"Content-Type": "application/geo+json"}, status=415),
    Bad(
        "B13-avro-event",
        "unsupported-media-type",
        headers={"Content-Type": "application/cloudevents+avro", "ce-id": "1"},
        status=415,
    ),
    Bad("B13-nonsense", "unsupported-media-type", headers={"Content-Type": CANARY}, status=415),
    Bad("B13-twice", "unsupported-media-type", headers=JSON | {"content-type": "text/plain"}, status=415),
    Bad(
        "B14-latin1",
        "unsupported-media-type",
        headers={"Content-Type": "application/json; charset=latin-1"},
        status=415,
    ),
    Bad(
        "B14-two",
        "unsupported-media-type",
        headers={"Content-Type": "application/json; charset=utf-8; charset=x"},
        status=415,
    ),
    Bad("B15-empty", "empty-batch", b"[]", BATCH),
    Bad("B15-too-many", "batch-too-large", b"[" + b",".join([event()] * 6) + b"]", BATCH, status=413),
    Bad("B15-no-array", "invalid-event", event(), BATCH),
    Bad("B17-missing", "invalid-event", event(id=None), STRUCTURED),
    Bad("B17-empty", "invalid-id", event(id=""), STRUCTURED),
    Bad("B17-no-source", "invalid-event", event(source=None), STRUCTURED),
    Bad("B17-no-version", "invalid-event", event(specversion=None), STRUCTURED),
    Bad("B17-other-version", "invalid-event", event(specversion="0.3"), STRUCTURED),
    Bad("B17-no-object", "invalid-event", b"[1]", STRUCTURED),
    Bad("B17-idempotency-key-unquoted", "invalid-idempotency-key", headers=JSON | {"Idempotency-Key": CANARY}),
    Bad("B17-idempotency-key-empty", "invalid-idempotency-key", headers=JSON | {"Idempotency-Key": '""'}),
    Bad("B17-idempotency-key-long", "invalid-idempotency-key", headers=JSON | {"Idempotency-Key": f'"{"x" * 129}"'}),
    Bad(
        "B17-idempotency-key-twice",
        "invalid-idempotency-key",
        headers=JSON | {"Idempotency-Key": '"a"', "idempotency-key": '"a"'},
    ),
    *(
        Bad(f"B18-{name}", "invalid-id", event(id=value), STRUCTURED)
        for name, value in {
            "long": "x" * 129,
            "long-in-bytes": "é" * 65,
            "cr": "a\rb",
            "lf": "a\n",
            "nul": "a\0",
            "format": "a\u200bb",
            "bidi": "a\u202eb",
            "line-separator": "a\u2028",
            "hash": "#a",
            "number": 5,
            "noncharacter": "a\ufdd0",
        }.items()
    ),
    Bad("B18-header", "invalid-id", headers=BINARY | {"ce-id": "%23a"}),
    *(
        Bad(f"B22-{name}", "invalid-type", event(type=value), STRUCTURED)
        for name, value in {
            "cr": "a\rb",
            "lf": "a\nb",
            "nul": "a\0b",
            "ours": "cdrs.gap",
            "empty": "",
            "long": "x" * 1025,
        }.items()
    ),
    Bad("B22-source-space", "invalid-source", event(source="/a b"), STRUCTURED),
    Bad("B22-source-empty", "invalid-source", event(source=""), STRUCTURED),
    Bad("B22-source-lf", "invalid-source", event(source="/a\n"), STRUCTURED),
    Bad("B22-attribute-control", "invalid-attribute", event(a="x\ny"), STRUCTURED),
    Bad("B22-attribute-object", "invalid-attribute", event(a={"b": CANARY}), STRUCTURED),
    Bad("B22-attribute-float", "invalid-attribute", event(a=1.5), STRUCTURED),
    Bad("B22-attribute-int64", "invalid-attribute", event(a=2**31), STRUCTURED),
    Bad("B22-attribute-name", "invalid-attribute", event(**{f"{CANARY}_X": 1}), STRUCTURED),
    Bad("B22-attribute-name-of-null", "invalid-attribute", event(**{f"{CANARY}_X": None}), STRUCTURED),
    Bad("B22-both-data", "invalid-event", event(data_base64="AA=="), STRUCTURED),
    Bad("B22-base64", "invalid-event", event(data_base64="AA=").replace(b'"data": ' + QUOTED + b", ", b""), STRUCTURED),
    Bad("B22-header-not-utf8", "invalid-attribute", headers=BINARY | {"ce-subject": "%ff"}),
    Bad("B22-data-header", "invalid-attribute", headers=BINARY | {"ce-data": CANARY}),
    Bad("B22-text-not-utf8", "invalid-event", b"\xff", BINARY | {"Content-Type": "text/plain"}),
    *(
        Bad(f"B25-{name}", "invalid-stream", QUOTED, target=f"/v1/streams/{stream}/events")
        for name, stream in {
            "dots": "..",
            "dot": ".",
            "encoded-dot": "%2e",
            "long": "a" * 65,
            "longer": ".".join(["a" * 60] * 4),
            "tokens": ".".join("a" * 17),
            "empty-token": "a..b",
            "server": "cdrs",
            "servers": "cdrs.nodes",
            "star": "a.*",
            "rest": "a.%3E",
            "lf": "a%0A",
            "nul": "a%00",
            "space": "a%20b",
            "homoglyph": "%D0%B0",
            "colon": "a:b",
        }.items()
    ),
    Bad("B25-slash", "not-found", target="/v1/streams/a%2Fb/events", status=404),
    Bad("B25-attribute", "invalid-stream", event(cdrsstream=f"{CANARY}/.."), STRUCTURED, target="/v1/events"),
    Bad("B25-attribute-of-server", "invalid-stream", event(cdrsstream="cdrs.x"), STRUCTURED, target="/v1/events"),
    Bad("B25-no-attribute", "invalid-stream", event(), STRUCTURED, target="/v1/events"),
    Bad("B28-key", "not-normalized", headers=JSON | {"Cdrs-Key": "e%CC%81"}),
    Bad("B31-long", "invalid-key", headers=JSON | {"Cdrs-Key": "k" * 257}),
    Bad("B31-empty", "invalid-key", headers=JSON | {"Cdrs-Key": ""}),
    Bad("B31-twice", "invalid-key", headers=JSON | {"Cdrs-Key": "a", "cdrs-key": "a"}),
    Bad("B31-type", "invalid-key", event(partitionkey=5), STRUCTURED),
    Bad("B31-control", "invalid-key", event(partitionkey="a\tb"), STRUCTURED),
    Bad("B32-header", "reserved-field", headers=JSON | {"Cdrs-Position": CANARY}),
    Bad("B32-ce-header", "reserved-field", headers=BINARY | {"ce-cdrsposition": CANARY}),
    Bad("B32-attribute", "reserved-field", event(cdrsposition=CANARY), STRUCTURED),
    Bad("B32-other-stream", "reserved-field", event(cdrsstream="bills"), STRUCTURED),
    Bad("B33-not-rfc3339", "invalid-time", event(time="yesterday"), STRUCTURED),
    Bad("B33-no-zone", "invalid-time", event(time="2015-09-12T00:46:58"), STRUCTURED),
    Bad("B33-no-such-day", "invalid-time", event(time="2015-02-29T00:00:00Z"), STRUCTURED),
    Bad("B33-number", "invalid-time", event(time=1442018818), STRUCTURED),
    Bad("B38-parameter", "invalid-parameter", target=f"{ORDERS}?a={CANARY}"),
    Bad(
        "B38-receipts",
        "invalid-parameter",
        target=f"{ORDERS}?receipts={CANARY}",
        headers={"Content-Type": "application/x-ndjson"},
    ),
    Bad("B38-long-target", "uri-too-long", target=f"{ORDERS}?a={CANARY * 1100}", status=414),
    Bad("B49-absolute-form", "invalid-request", target=f"http://{CANARY}{ORDERS}"),
    Bad("B49-userinfo", "invalid-request", target=f"http://{CANARY}@test{ORDERS}"),
    Bad("B49-at", "invalid-request", target=f"@{CANARY}{ORDERS}"),
    Bad("B49-fragment", "invalid-request", target=f"{ORDERS}#{CANARY}"),
    Bad("B49-bad-host", "invalid-request", headers=JSON | {"Host": f"{CANARY}/x"}),
    Bad("B49-userinfo-in-host", "invalid-request", headers=JSON | {"Host": f"{CANARY}@x"}),
    Bad("B49-two-hosts", "invalid-request", headers=JSON | {"host": CANARY}),
    Bad("B50-bytes", "headers-too-large", headers=JSON | {"X-A": CANARY * 2100}, status=431),
    Bad("B50-count", "headers-too-large", headers=JSON | {f"X-{n}": CANARY for n in range(101)}, status=431),
    Bad("B51-unknown", "method-not-allowed", method="FROB", status=405),
    Bad("B51-lower-case", "method-not-allowed", method="post", status=405),
    Bad("B51-trace", "method-not-allowed", method="TRACE", status=405),
    Bad("B51-connect", "method-not-allowed", method="CONNECT", target="test:80", status=405),
    Bad("B51-put", "method-not-allowed", method="PUT", status=405),
    Bad("B51-override", "method-not-allowed", headers=JSON | {"X-HTTP-Method-Override": "DELETE"}, status=405),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_refused(server: ProduceServer, case: Bad) -> None:
    async with connected(server.port) as connection:
        answer = await connection.request(case.method, case.target, case.body, case.headers)
    assert (answer.status, answer.problem) == (case.status, case.problem)
    assert CANARY not in json.dumps(answer.json())
    assert CANARY not in str(answer.headers)
    assert server.dispatcher.events() == []
    if case.status == 405:
        assert "POST" in answer.headers["allow"]
    if (
        case.status == 415
        and case.problem == "unsupported-media-type"
        and "nonsense" not in case.name
        and "two" not in case.name
    ):
        assert "curl --json" in answer.json()["detail"]


async def test_b51_allow_lists_the_methods_of_all_routes_of_an_address(server: ProduceServer) -> None:
    answer = await get(server.port, ORDERS, method="DELETE")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, POST")


# --- accepted, although it looks odd ---------------------------------------------------------------------

ODD = {
    "B5-32-levels": nested(32),
    "B5-brackets-in-a-string": json.dumps("[{" * 500).encode(),
    "B6-uint64": b"18446744073709551615",
    "B6-huge": b"1" * 400 + b".5e+400",
    "B7-duplicate-keys-in-data": b'{"a":1,"a":2}',
    "B8-many-keys-in-data": json.dumps({str(n): n for n in range(300)}).encode(),
    "B24-controls": json.dumps("a\r\n\ndata: x\u2028\u2029\0", ensure_ascii=False).encode(),
    "B24-separator": '"\u2028"'.encode(),
    "B24-null": b"null",
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("mode", ["payload", "structured"])
async def test_accepted_byte_for_byte(server: ProduceServer, name: str, mode: str) -> None:
    body = ODD[name]
    sent = body if mode == "payload" else event().replace(QUOTED, body)
    async with connected(server.port) as connection:
        answer = await connection.request("POST", ORDERS, sent, JSON if mode == "payload" else STRUCTURED)
    assert answer.status == 201, answer
    (stored,) = server.dispatcher.events()
    assert stored.value[stored.data_at : -1] == body
    assert b"\r" not in stored.value
    assert b"\n" not in stored.value


async def test_b33_a_time_far_away_is_data(server: ProduceServer) -> None:
    async with connected(server.port) as connection:
        for n, time in enumerate(("0000-01-01T00:00:00Z", "9999-12-31T23:59:60+23:59")):
            answer = await connection.request("POST", ORDERS, event(id=str(n), time=time), STRUCTURED)
            assert answer.status == 201


# --- batches ---------------------------------------------------------------------------------------------


async def test_b16_one_bad_item_does_not_take_the_others_with_it(server: ProduceServer) -> None:
    items = [event(id="a"), event(id="#bad"), b"5", event(id="b"), event(id="c").ljust(LIMIT + 1)]
    async with connected(server.port) as connection:
        answer = await connection.request("POST", ORDERS, b"[" + b",".join(items) + b"]", BATCH)
    assert answer.status == 207
    good, bad_id, bad_item, better, padded = answer.json()
    assert (good["id"], better["id"], padded["id"]) == ("a", "b", "c")
    assert (bad_id["index"], bad_id["status"], bad_id["problem"]["type"]) == (1, 400, "/problems/invalid-id")
    assert (bad_item["index"], bad_item["problem"]["type"]) == (2, "/problems/invalid-event")
    assert len(server.dispatcher.events()) == 3
    assert server.context.ingested("refused") == 2
