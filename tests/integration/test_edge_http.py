"""The edge over HTTP, on one real process: streams, pages, single events, nodes, probes and the pages for people."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
import pytest
import pytest_asyncio
from spec_parser import SpecParser
from yarl import URL

from services.launcher import run_all_in_one
from shared.position import Cursor, Epoch
from shared.settings import GatewaySettings, Settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

SSE = {"accept": "text/event-stream"}
JSON = {"accept": "application/json"}


class Answer:
    """A response that was read."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def problem(self) -> str:
        """The problem's name, after checking that it is a proper problem document."""
        assert self.headers["content-type"] == "application/problem+json"
        assert self.json["status"] == self.status
        assert self.json["title"]
        return str(self.json["type"]).removeprefix("/problems/")


class Client:
    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def request(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        data = orjson.dumps(body) if isinstance(body, dict | list) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            named.setdefault("content-type", "application/json")
        url = URL(self.url + path, encoded=True)
        async with self._session.request(method, url, data=data, headers=named, allow_redirects=False) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.request("GET", path, **headers)

    async def page(self, path: str) -> Any:
        answer = await self.get(path, **JSON)
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"] == "application/json"
        return answer.json

    async def publish(self, stream: str, data: bytes = b"{}", event_id: str | None = None, **attributes: str) -> Any:
        """In a millisecond of its own: among events of equal append times the order of partitions decides."""
        now = time.time_ns() // 1_000_000
        while time.time_ns() // 1_000_000 == now:
            await asyncio.sleep(0)
        headers = {f"ce_{name}": value for name, value in attributes.items()}
        if event_id is not None:
            headers["ce_id"] = quote(event_id, safe="")
        if headers:
            headers = {"ce_specversion": "1.0", "ce_type": "test", "ce_source": "/test", **headers}
        answer = await self.request("POST", f"/v1/streams/{stream}/events", data, **headers)
        assert answer.status == 201, answer.body
        return answer.json

    @asynccontextmanager
    async def stream(self, path: str) -> AsyncIterator[SpecParser]:
        """An open event stream; whoever needs more of it calls `more`."""
        async with self._session.get(self.url + path, headers=SSE) as response:
            assert response.status == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            parser = SpecParser()

            async def more() -> bool:
                async with asyncio.timeout(10):
                    chunk = await response.content.readany()
                parser.feed(chunk)
                return bool(chunk)

            parser.more = more
            yield parser


@asynccontextmanager
async def one_process(folder: Path, **gateway: Any) -> AsyncIterator[tuple[Client, asyncio.Event]]:
    settings = Settings(data=folder, gateway=GatewaySettings(port=0, **gateway))
    stop, found = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def on_ready(url: str) -> None:
        found.set_result(url)

    running = asyncio.create_task(run_all_in_one(settings, stop, on_ready))
    try:
        async with asyncio.timeout(20):
            await asyncio.wait((running, found), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        async with aiohttp.ClientSession() as session:
            yield Client(found.result(), session), stop
    finally:
        stop.set()
        await running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cdrs(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    async with one_process(tmp_path_factory.mktemp("cdrs")) as (client, _):
        yield client


# --- streams ---------------------------------------------------------------------------------------


async def test_a_stream_is_created_once(cdrs: Client) -> None:
    created = await cdrs.request("PUT", "/v1/streams/made.one", {"spread": 3})
    assert created.status == 201
    assert created.json["spread"] == 3
    assert len(created.json["partitions"]) == 3
    assert created.json["last"] is None
    again = await cdrs.request("PUT", "/v1/streams/made.one", {"spread": 3})
    assert (again.status, again.json) == (200, created.json)
    assert (await cdrs.request("PUT", "/v1/streams/made.one", {})).status == 200
    other = await cdrs.request("PUT", "/v1/streams/made.one", {"spread": 2})
    assert (other.status, other.problem) == (409, "stream-conflict")
    assert (await cdrs.get("/v1/streams/made.one")).json == created.json


async def test_a_created_spread_is_what_events_are_routed_by(cdrs: Client) -> None:
    created = (await cdrs.request("PUT", "/v1/streams/made.wide", {"spread": 4})).json
    receipts = [await cdrs.publish("made.wide") for _ in range(30)]
    assert {receipt["partition"] for receipt in receipts} == set(created["partitions"])
    page = await cdrs.page("/v1/streams/made.wide/events")
    assert [item["event"]["id"] for item in page["events"]] == [receipt["id"] for receipt in receipts]
    stream = (await cdrs.get("/v1/streams/made.wide")).json
    assert stream["events"] == 30
    assert set(Cursor.decode(stream["last"]["cursor"]).next) == set(created["partitions"])


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"spread": 0}', "invalid-parameter"),
        (b'{"spread": 13}', "invalid-parameter"),
        (b'{"spread": true}', "invalid-parameter"),
        (b'{"spread": "2"}', "invalid-parameter"),
        (b'{"spread": 1.0}', "invalid-parameter"),
        (b'{"spread": null}', "invalid-parameter"),
        (b'{"retention": 5}', "invalid-parameter"),
        (b'{"<script>": 5}', "invalid-parameter"),
        (b"[]", "invalid-parameter"),
        (b"null", "invalid-parameter"),
        (b"", "malformed-json"),
        (b"{", "malformed-json"),
        (b'{"spread": NaN}', "malformed-json"),
        (b"\xff", "malformed-json"),
        (b"[" * 10_000, "malformed-json"),
        (b'"' + b"x" * 70_000 + b'"', "payload-too-large"),
    ],
)
async def test_bad_settings_create_nothing(cdrs: Client, body: bytes, problem: str) -> None:
    refused = await cdrs.request("PUT", "/v1/streams/never.made", body)
    assert refused.problem == problem
    assert b"script" not in refused.body
    assert (await cdrs.get("/v1/streams/never.made")).problem == "unknown-stream"


async def test_an_unknown_setting_is_named(cdrs: Client) -> None:
    refused = await cdrs.request("PUT", "/v1/streams/never.made", {"spread": 1, "retention": 5})
    assert "'retention'" in refused.json["detail"]


@pytest.mark.parametrize("name", ["a..b", ".a", "a%20b", "%C3%A4", "x" * 65, ".".join("a" * 17), "cdrs.own", "a%00"])
async def test_bad_names_are_refused(cdrs: Client, name: str) -> None:
    refused = await cdrs.request("PUT", f"/v1/streams/{name}", {"spread": 1})
    assert (refused.status, refused.problem) == (400, "invalid-stream")


async def test_settings_are_json(cdrs: Client) -> None:
    refused = await cdrs.request("PUT", "/v1/streams/never.made", b"spread=1", content_type="text/plain")
    assert (refused.status, refused.problem) == (415, "unsupported-media-type")


async def test_streams_are_listed_in_order_and_in_pages(cdrs: Client) -> None:
    names = ["list.a.x", "list.a.y", "list.b.x", "list.c"]
    for name in names:
        await cdrs.publish(name)
    whole = await cdrs.page("/v1/streams?stream=list.%3E")
    assert [stream["name"] for stream in whole["streams"]] == names
    assert whole["next"] is None
    got: list[str] = []
    after = ""
    for _ in range(10):
        page = await cdrs.page(f"/v1/streams?stream=list.%3E&limit=2&after={after}")
        got += [stream["name"] for stream in page["streams"]]
        if page["next"] is None:
            break
        after = page["next"]
    assert got == names
    some = await cdrs.page("/v1/streams?stream=list.*.x&stream=list.c")
    assert [stream["name"] for stream in some["streams"]] == ["list.a.x", "list.b.x", "list.c"]
    everything = [stream["name"] for stream in (await cdrs.page("/v1/streams?limit=1000"))["streams"]]
    assert everything == sorted(everything)
    assert set(names) <= set(everything)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=1&limit=2", "after=%00", "wrong=1", "limit=%D9%A3", "limit="]
)
async def test_bad_listings_are_refused(cdrs: Client, query: str) -> None:
    assert (await cdrs.get(f"/v1/streams?{query}")).problem == "invalid-parameter"


async def test_counts_and_the_last_event_are_true_when_the_receipt_is_out(cdrs: Client) -> None:
    for n in range(1, 4):
        receipt = await cdrs.publish("counted.one")
        stream = (await cdrs.get("/v1/streams/counted.one")).json
        assert (stream["events"], stream["last"]["cursor"]) == (n, receipt["cursor"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stream["last"]["append_time"])


# --- pages -----------------------------------------------------------------------------------------


async def numbers(cdrs: Client, path: str) -> list[int]:
    return [item["event"]["data"] for item in (await cdrs.page(path))["events"]]


async def fill(cdrs: Client, stream: str, count: int, **attributes: str) -> list[Any]:
    if attributes or count < 20:
        return [await cdrs.publish(stream, str(n).encode(), f"{stream}-{n}", **attributes) for n in range(count)]
    lines = b"\n".join(str(n).encode() for n in range(count))
    answer = await cdrs.request("POST", f"/v1/streams/{stream}/events", lines, content_type="application/x-ndjson")
    receipts = [orjson.loads(line) for line in answer.body.splitlines()]
    assert receipts.pop()["summary"]["stored"] == count
    return receipts


async def test_pages_follow_each_other_without_hole_or_repeat(cdrs: Client) -> None:
    await fill(cdrs, "paged.one", 25)
    got: list[int] = []
    sizes: list[int] = []
    path = "/v1/streams/paged.one/events?limit=10"
    for _ in range(5):
        page = await cdrs.page(path)
        assert page["gap"] is None
        sizes.append(len(page["events"]))
        got += [item["event"]["data"] for item in page["events"]]
        if page["at_end"] and not page["events"]:
            break
        path = f"/v1/streams/paged.one/events?limit=10&from={page['next']}"
    assert got == list(range(25))
    assert sizes == [10, 10, 5, 0]


async def test_every_events_cursor_resumes_behind_it(cdrs: Client) -> None:
    receipts = await fill(cdrs, "paged.two", 5)
    page = await cdrs.page("/v1/streams/paged.two/events")
    assert [item["cursor"] for item in page["events"]] == [receipt["cursor"] for receipt in receipts]
    for n, item in enumerate(page["events"]):
        assert await numbers(cdrs, f"/v1/streams/paged.two/events?from={item['cursor']}") == list(range(n + 1, 5))
    assert page["next"] == receipts[-1]["cursor"]


async def test_what_was_sent_comes_out_byte_for_byte(cdrs: Client) -> None:
    data = b'{"a" :1.0,  "big":12345678901234567890, "e":1E400, "u":"\\u00e4\xc3\xa4", "k":1, "k":2}'
    await cdrs.publish("paged.bytes", data)
    answer = await cdrs.get("/v1/streams/paged.bytes/events", **JSON)
    assert data in answer.body
    receipt = await cdrs.publish("paged.bytes", data, event_id="again")
    assert data in (await cdrs.get(f"/v1/streams/paged.bytes/events/{receipt['id']}")).body


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", range(6)),
        ("from=earliest", range(6)),
        ("from=latest", []),
        ("from=-2", [4, 5]),
        ("from=-100", range(6)),
        ("from=-3&limit=1", [3]),
        ("from=-1h", range(6)),
        ("from=2020-01-01T00:00:00Z", range(6)),
        ("from=2020-01-01T00:00:00%2B02:00", range(6)),
        ("from=2999-01-01T00:00:00Z", []),
        ("filter=" + quote('[{"exact":{"id":"paged.three-2"}}]'), [2]),
        ("from=-1&filter=" + quote('[{"not":{"suffix":{"id":"5"}}}]'), [4]),
        ("from=-9&filter=" + quote('[{"exact":{"type":"other"}}]'), []),
        ("filter=[]&limit=1000", range(6)),
    ],
)
async def test_starts_and_filters(cdrs: Client, query: str, expected: Any) -> None:
    if (await cdrs.get("/v1/streams/paged.three")).status == 404:
        await fill(cdrs, "paged.three", 6, type="test")
    assert await numbers(cdrs, f"/v1/streams/paged.three/events?{query}") == list(expected)


async def test_several_streams_and_patterns_are_merged_in_order_of_time(cdrs: Client) -> None:
    names = [f"merged.{letter}" for letter in "abcdefgh"]
    for n in range(24):
        await cdrs.publish(names[n % 8], str(n).encode())
    assert await numbers(cdrs, "/v1/events?stream=merged.%3E") == list(range(24))
    assert await numbers(cdrs, "/v1/events?stream=merged.a&stream=merged.c") == [
        n for n in range(24) if n % 8 in (0, 2)
    ]
    got: list[int] = []
    start = "earliest"
    for _ in range(30):
        page = await cdrs.page(f"/v1/events?stream=merged.*&limit=1&from={start}")
        got += [item["event"]["data"] for item in page["events"]]
        start = page["next"]
        assert all(item["cursor"] == start for item in page["events"])
        if page["at_end"]:
            break
    assert got == list(range(24))


async def test_a_stream_that_does_not_exist_is_an_empty_page(cdrs: Client) -> None:
    page = await cdrs.page("/v1/streams/never.written/events")
    assert (page["events"], page["at_end"], page["gap"]) == ([], True, None)
    await cdrs.publish("never.written", b"1")
    assert await numbers(cdrs, f"/v1/streams/never.written/events?from={page['next']}") == [1]


@pytest.mark.parametrize(
    ("path", "status", "problem"),
    [
        ("/v1/streams/paged.x/events?from=lateest", 400, "invalid-from"),
        ("/v1/streams/paged.x/events?from=-10001", 400, "invalid-from"),
        ("/v1/streams/paged.x/events?from=2026-11-20", 400, "invalid-from"),
        ("/v1/streams/paged.x/events?from=" + "A" * 40, 400, "invalid-cursor"),
        ("/v1/streams/paged.x/events?from=" + "A" * 5000, 400, "invalid-cursor"),
        ("/v1/streams/paged.x/events?from=" + Cursor(Epoch(1, 1), {0: 1}).encode(), 410, "gone"),
        ("/v1/streams/paged.x/events?limit=1001", 400, "invalid-parameter"),
        ("/v1/streams/paged.x/events?from=latest&from=earliest", 400, "invalid-parameter"),
        ("/v1/streams/paged.x/events?named=true", 400, "invalid-parameter"),
        ("/v1/streams/paged.x/events?filter={}", 400, "invalid-filter"),
        ("/v1/streams/paged.x/events?stream=b", 400, "invalid-parameter"),
        ("/v1/streams/a..b/events", 400, "invalid-stream"),
        ("/v1/events", 400, "invalid-parameter"),
        ("/v1/events?stream=a.%3E.b", 400, "invalid-pattern"),
        ("/v1/events?stream=a.%3E&from=-3", 400, "invalid-from"),
        ("/v1/events?" + "&".join(f"stream=s{n}" for n in range(101)), 400, "too-many-streams"),
    ],
)
async def test_bad_pages_are_refused(cdrs: Client, path: str, status: int, problem: str) -> None:
    refused = await cdrs.get(path, **JSON)
    assert (refused.status, refused.problem) == (status, problem)


async def test_a_cursor_beyond_the_log_is_gone(cdrs: Client) -> None:
    receipt = await cdrs.publish("paged.end")
    cursor = Cursor.decode(receipt["cursor"])
    beyond = Cursor(cursor.epoch, {partition: offset + 1000 for partition, offset in cursor.next.items()}).encode()
    refused = await cdrs.get(f"/v1/streams/paged.end/events?from={beyond}", **JSON)
    assert (refused.status, refused.problem) == (410, "gone")


async def test_a_cursor_of_one_stream_places_a_reader_of_many_in_time(cdrs: Client) -> None:
    await fill(cdrs, "placed.a", 3)
    middle = await cdrs.publish("placed.b", b"100")
    await asyncio.sleep(0.005)
    later = [await cdrs.publish(f"placed.{name}", str(n).encode()) for n, name in enumerate("cdefghij", 200)]
    assert len({receipt["partition"] for receipt in later} - {middle["partition"]}) > 1
    found = await numbers(cdrs, f"/v1/events?stream=placed.%3E&from={middle['cursor']}")
    assert found[-8:] == list(range(200, 208))
    assert 100 not in found


async def test_a_page_goes_on_as_a_subscription(cdrs: Client) -> None:
    await fill(cdrs, "handed.over", 4)
    page = await cdrs.page("/v1/streams/handed.over/events?limit=2")
    async with cdrs.stream(f"/v1/streams/handed.over/events?from={page['next']}") as stream:
        while sum(not event.name.startswith("cdrs.") for event in stream.events) < 2:
            assert await stream.more()
    data = [orjson.loads(event.data)["data"] for event in stream.events if not event.name.startswith("cdrs.")]
    assert data == [2, 3]


# --- one event -------------------------------------------------------------------------------------


async def test_an_event_has_an_address_of_its_own(cdrs: Client) -> None:
    receipt = await cdrs.publish("single.one", b'{"n": 1}', event_id="first", subject="x")
    path = "/v1/streams/single.one/events/first"
    found = await cdrs.get(path)
    assert (found.status, found.headers["content-type"]) == (200, "application/cloudevents+json")
    assert found.json["id"] == "first"
    assert found.json["data"] == {"n": 1}
    assert found.headers["cdrs-cursor"] == receipt["cursor"]
    unchanged = await cdrs.get(path, if_none_match=found.headers["etag"])
    assert (unchanged.status, unchanged.body) == (304, b"")
    assert (await cdrs.get(path, if_none_match='"other", W/"x"')).status == 200
    head = await cdrs.request("HEAD", path)
    assert (head.status, head.body, head.headers["etag"]) == (200, b"", found.headers["etag"])


@pytest.mark.parametrize(
    "event_id", ["a/b", "/", "a//b", "100%", "a%2Fb", "ä ü", "?x=1", "a#b", "a+b", "..a", "日本", "x" * 128]
)
async def test_ids_may_hold_anything_that_an_address_can_encode(cdrs: Client, event_id: str) -> None:
    await cdrs.publish("single.ids", orjson.dumps(event_id), event_id=event_id)
    found = await cdrs.get(f"/v1/streams/single.ids/events/{quote(event_id, safe='')}")
    assert (found.status, found.json["id"], found.json["data"]) == (200, event_id, event_id)


async def test_an_id_of_several_sources_needs_the_source(cdrs: Client) -> None:
    for source in ("/a", "/b"):
        await cdrs.publish("single.two", orjson.dumps(source), event_id="same", source=source)
    ambiguous = await cdrs.get("/v1/streams/single.two/events/same")
    assert (ambiguous.status, ambiguous.problem, ambiguous.json["sources"]) == (409, "ambiguous-event", 2)
    assert (await cdrs.get("/v1/streams/single.two/events/same?source=%2Fb")).json["data"] == "/b"
    assert (await cdrs.get("/v1/streams/single.two/events/same?source=%2Fc")).problem == "unknown-event"


@pytest.mark.parametrize(
    ("path", "status", "problem"),
    [
        ("/v1/streams/single.one/events/none", 404, "unknown-event"),
        ("/v1/streams/never.heard/events/of", 404, "unknown-event"),
        ("/v1/streams/single.one/events/", 400, "invalid-id"),
        ("/v1/streams/single.one/events/%23x", 400, "invalid-id"),
        ("/v1/streams/single.one/events/%00", 400, "invalid-id"),
        ("/v1/streams/single.one/events/" + "x" * 129, 400, "invalid-id"),
        ("/v1/streams/a..b/events/x", 400, "invalid-stream"),
        ("/v1/streams/single.one/events/x?wrong=1", 400, "invalid-parameter"),
        ("/v1/streams/single.one/events/x?source=a&source=b", 400, "invalid-parameter"),
        ("/v1/streams/single.one/events/x?source=", 400, "invalid-source"),
    ],
)
async def test_other_events_are_not_found(cdrs: Client, path: str, status: int, problem: str) -> None:
    refused = await cdrs.get(path)
    assert (refused.status, refused.problem) == (status, problem)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/streams/single.one/events/first", "GET, HEAD"),
        ("POST", "/v1/streams/single.one", "GET, HEAD, PUT"),
        ("PUT", "/v1/streams", "GET, HEAD"),
        ("POST", "/v1/nodes", "GET, HEAD"),
        ("PUT", "/v1/streams/single.one/events", "GET, HEAD, POST"),
    ],
)
async def test_other_methods_are_not_allowed(cdrs: Client, method: str, path: str, allowed: str) -> None:
    refused = await cdrs.request(method, path)
    assert (refused.status, refused.problem, refused.headers["allow"]) == (405, "method-not-allowed", allowed)


# --- nodes -----------------------------------------------------------------------------------------

NODE_FIELDS = {
    "id", "incarnation", "role", "url", "version", "zone", "capacity", "seq", "cpu", "memory_bytes", "in_flight",
    "ewma_ms", "lag_records", "connections", "partitions", "state", "age_ms", "since", "took_ms", "preferred",
    "in_set", "in_heartbeats",
}  # fmt: skip


async def everybody(cdrs: Client) -> dict[str, Any]:
    """The picture, as soon as node and gateway have both been heard."""
    async with asyncio.timeout(10):
        while True:
            picture = (await cdrs.get("/v1/nodes")).json
            if {node["role"] for node in picture["nodes"] if node["in_heartbeats"]} == {"node", "gateway"}:
                return picture
            await asyncio.sleep(0.05)


async def test_the_registry_as_json(cdrs: Client) -> None:
    picture = await everybody(cdrs)
    assert picture["registry"] == "ok"
    assert picture["as_of"].endswith("Z")
    by_role = {node["role"]: node for node in picture["nodes"]}
    for node in picture["nodes"]:
        assert node.keys() == NODE_FIELDS
        assert (node["state"], node["in_set"]) == ("live", True)
    assert by_role["node"]["preferred"] == list(range(12))
    assert by_role["gateway"]["preferred"] == []
    one = await cdrs.get(f"/v1/nodes/{by_role['node']['id']}")
    assert (one.status, one.json["incarnation"]) == (200, by_role["node"]["incarnation"])


async def test_the_registry_as_a_stream(cdrs: Client) -> None:
    await everybody(cdrs)
    async with cdrs.stream("/v1/nodes") as stream:
        while len(stream.events) < 3:
            assert await stream.more()
    first, *others = stream.events
    assert first.name == "cdrs.nodes"
    assert {node["role"] for node in orjson.loads(first.data)["nodes"]} == {"node", "gateway"}
    for event in others:
        assert event.name == "cdrs.node"
        said = orjson.loads(event.data)
        assert said["change"] == "load"
        assert said["node"].keys() == NODE_FIELDS
        assert said["registry"] == "ok"
    assert {event.last_id for event in stream.events} == {""}


async def test_one_node_as_a_stream(cdrs: Client) -> None:
    picture = await everybody(cdrs)
    node_id = next(node["id"] for node in picture["nodes"] if node["role"] == "node")
    async with cdrs.stream(f"/v1/nodes/{node_id}") as stream:
        while len(stream.events) < 3:
            assert await stream.more()
    assert [node["id"] for node in orjson.loads(stream.events[0].data)["nodes"]] == [node_id]
    assert {orjson.loads(event.data)["node"]["id"] for event in stream.events[1:]} == {node_id}


@pytest.mark.parametrize(
    ("path", "accept", "status", "problem"),
    [
        ("/v1/nodes/nobody", "*/*", 404, "unknown-node"),
        ("/v1/nodes/nobody", "text/event-stream", 404, "unknown-node"),
        ("/v1/nodes", "text/html", 406, "not-acceptable"),
        ("/v1/nodes?x=1", "*/*", 400, "invalid-parameter"),
    ],
)
async def test_bad_questions_about_nodes(cdrs: Client, path: str, accept: str, status: int, problem: str) -> None:
    refused = await cdrs.get(path, accept=accept)
    assert (refused.status, refused.problem) == (status, problem)


# --- probes and metrics ----------------------------------------------------------------------------


async def test_the_probes_are_green(cdrs: Client) -> None:
    await everybody(cdrs)
    assert (await cdrs.get("/livez")).json == {"status": "ok"}
    assert (await cdrs.get("/startupz")).json == {"status": "ok"}
    ready = await cdrs.get("/readyz")
    assert (ready.status, ready.json, ready.headers["cache-control"]) == (200, {"status": "ok"}, "no-store")
    verbose = (await cdrs.get("/readyz?verbose")).json
    assert verbose.keys() == {"status", "draining", "checks"}
    assert verbose["checks"].keys() == {"log", "registry", "nodes", "feed", "loop", "descriptors", "disk"}
    for check in verbose["checks"].values():
        assert check.keys() == {"ok", "detail", "since"}
        assert check["ok"] is True


async def metric(cdrs: Client, line: str) -> float:
    body = (await cdrs.get("/metrics")).body.decode()
    found = re.search(rf"^{re.escape(line)} (\S+)$", body, re.MULTILINE)
    assert found, line
    return float(found[1])


async def test_the_metrics_count(cdrs: Client) -> None:
    await everybody(cdrs)
    stored = 'cdrs_ingest_events_total{result="stored"}'
    before = await metric(cdrs, stored)
    await fill(cdrs, "metered.one", 7)
    assert await metric(cdrs, stored) == before + 7
    assert await metric(cdrs, 'cdrs_registry_nodes{role="node",state="live"}') == 1
    assert await metric(cdrs, 'cdrs_consumer_lag_records{partition="0"}') >= 0
    answer = await cdrs.get("/metrics", accept="application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")
    assert b"metered" not in answer.body


# --- pages for people ------------------------------------------------------------------------------


async def test_the_console_is_readable_without_scripts_and_strict_with_them(cdrs: Client) -> None:
    picture = await everybody(cdrs)
    page = await cdrs.get("/console/")
    html = page.body.decode()
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for node in picture["nodes"]:
        assert f"<td>{node['id']}</td>" in html
    assert "$" not in re.sub(r"\$\{", "", html)
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", html)
    for path in re.findall(r'(?:src|href)="(/console/[^"]+)"', html):
        asset = await cdrs.get(path)
        assert asset.status == 200
        assert asset.headers["content-type"].split(";")[0] in {"text/javascript", "text/css"}
        assert (await cdrs.get(path, if_none_match=asset.headers["etag"])).status == 304


async def test_a_strange_host_is_not_echoed_as_markup(cdrs: Client) -> None:
    page = await cdrs.get("/console/", host='x"><b>')
    assert b'"><b>' not in page.body


@pytest.mark.parametrize(
    "path", ["/console/none.js", "/console/index.html", "/console/..%2Fapp.py", "/console/%2e%2e", "/nowhere"]
)
async def test_nothing_else_is_served(cdrs: Client, path: str) -> None:
    assert (await cdrs.get(path)).status == 404


async def test_the_documents(cdrs: Client) -> None:
    document = (await cdrs.get("/openapi.json")).json
    assert document["openapi"] == "3.1.0"
    docs = await cdrs.get("/docs")
    assert docs.headers["content-type"].startswith("text/html")
    assert "script-src" not in docs.headers["content-security-policy"]
    for problem in re.findall(r'href="(/problems/[a-z-]+)"', docs.body.decode())[::9]:
        assert (await cdrs.get(problem)).status == 200


# --- leaving ---------------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="function")
async def test_a_drain_ends_registry_streams_with_a_bye_and_looks_unready(tmp_path: Path) -> None:
    async with one_process(tmp_path, drain_delay=0.3) as (cdrs, stop), cdrs.stream("/v1/nodes") as stream:
        assert await stream.more()
        stop.set()
        while await stream.more():
            if any(event.name == "cdrs.bye" for event in stream.events):
                break
        unready = await cdrs.get("/readyz?verbose")
        assert (unready.status, unready.json["status"], unready.json["draining"]) == (503, "unavailable", True)
        async with cdrs.stream("/v1/nodes") as late:
            while await late.more():
                pass
    bye = next(event for event in stream.events if event.name == "cdrs.bye")
    assert orjson.loads(bye.data)["reason"] == "drain"
    assert [event.name for event in late.events] == ["cdrs.bye"]
