"""A node behind HTTP: vanishing clients, slow readers, what is no request, stops and kills."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import cast

import aiohttp
import pytest
from model_log import ModelLog, event, events
from node_process import EPOCH, node_process
from node_world import TIMEOUT, read_feed, running, running_node, served, until

from cdrs.server import serve
from shared.backends.http import link as http_link
from shared.backends.http.link import HttpNodeLink
from shared.backends.http.messages import CALL, FEED, HANDOFF, MAX_CALL, FeedRequest, HandoffAnswer, HandoffRequest
from shared.errors import CdrsError, LinkBroken, OutcomeUnknown
from shared.records import Duplicate, FeedBatch, HistoryPage, NewEvent, PageQuery, Settlement
from shared.telemetry import Telemetry
from shared.wire import WireError, decode, encode, frame


@pytest.fixture
def log() -> ModelLog:
    return ModelLog()


async def test_a_handoff_whose_client_vanishes_is_stored_all_the_same(log: ModelLog) -> None:
    async with running_node(log) as node, served(node) as url:
        log.open_for_appends.clear()
        async with HttpNodeLink(url) as link:
            task = asyncio.ensure_future(link.append(log.epoch, 0, events([0]), timeout=TIMEOUT))
            await until(lambda: log.begun == 1)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        log.open_for_appends.set()
        await until(lambda: len(log.records[0]) == 1)
        await until(lambda: node.load().in_flight == 0)


class OneHangs(ModelLog):
    """Appends to partition 1 wait until ``open_for_appends``."""

    async def append(self, partition: int, events: Sequence[NewEvent], *, base: int) -> Sequence[Duplicate | None]:
        if partition != 1:
            return [self.write(partition, event, base=base) for event in events]
        return await super().append(partition, events, base=base)


class Answers:
    """What handoffs that went together are answered with, in the order it came."""

    def __init__(self, link: HttpNodeLink, log: ModelLog, *, timeout: float = TIMEOUT) -> None:
        self.came: list[tuple[int, Sequence[Settlement] | CdrsError]] = []
        handoffs = [(p, events([10 * p, 10 * p + 1]), partial(self._told, p)) for p in range(3)]
        link.hand_over(log.epoch, handoffs, timeout=timeout)

    def _told(self, partition: int, outcome: Sequence[Settlement] | CdrsError) -> None:
        self.came.append((partition, outcome))

    @property
    def partitions(self) -> list[int]:
        return [partition for partition, _ in self.came]


async def test_a_slow_partition_holds_up_no_receipt_of_the_others() -> None:
    log = OneHangs()
    log.open_for_appends.clear()
    async with running_node(log) as node, served(node) as url, HttpNodeLink(url) as link:
        answers = Answers(link, log)
        await until(lambda: len(answers.came) == 2)
        assert sorted(answers.partitions) == [0, 2]
        assert not any(isinstance(outcome, CdrsError) for _, outcome in answers.came)
        log.open_for_appends.set()
        await until(lambda: len(answers.came) == 3)
        assert [s.offset for s in cast("Sequence[Settlement]", answers.came[-1][1])] == [0, 1]


async def test_a_slow_partition_times_out_for_itself() -> None:
    log = OneHangs()
    log.open_for_appends.clear()
    async with running_node(log) as node, served(node) as url, HttpNodeLink(url) as link:
        answers = Answers(link, log, timeout=0.5)
        await until(lambda: len(answers.came) == 3)
        assert isinstance(dict(answers.came)[1], OutcomeUnknown)
        assert [type(dict(answers.came)[p]) for p in (0, 2)] == [list, list]
        log.open_for_appends.set()


async def test_a_link_that_is_closed_tells_each_that_is_left_once() -> None:
    log = OneHangs()
    log.open_for_appends.clear()
    async with running_node(log) as node, served(node) as url, HttpNodeLink(url) as link:
        answers = Answers(link, log)
        await until(lambda: len(answers.came) == 2)
        await link.close()
        assert answers.partitions[2:] == [1]
        assert isinstance(dict(answers.came)[1], LinkBroken)
        log.open_for_appends.set()
        await until(lambda: node.load().in_flight == 0)
        assert len(answers.came) == 3


STORED = [Settlement(0, 0, 1), Settlement(0, 1, 1)]


@pytest.mark.parametrize(
    ("said", "settled"),
    [
        pytest.param([HandoffAnswer(0, STORED)], 1, id="cut after one"),
        pytest.param([HandoffAnswer(0, STORED), HandoffAnswer(7, STORED)], 1, id="one that nobody asked for"),
        pytest.param([HandoffAnswer(0, STORED), HandoffAnswer(0, STORED)], 1, id="one twice"),
        pytest.param([HandoffAnswer(0, STORED[:1])], 0, id="too few"),
        pytest.param(["nonsense"], 0, id="no answer"),
        pytest.param([], 0, id="nothing"),
    ],
)
async def test_where_the_answer_is_not_whole_each_that_is_left_is_told_once(said: list[object], settled: int) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b"".join(frame(each) for each in said)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        if body:
            writer.write(b"%x\r\n%b\r\n" % (len(body), body))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, HttpNodeLink(f"http://127.0.0.1:{port}") as link:
        answers = Answers(link, ModelLog())
        await until(lambda: len(answers.came) == 3)
        assert [p for p, outcome in answers.came if not isinstance(outcome, CdrsError)] == [0] * settled
        assert all(isinstance(outcome, LinkBroken) for _, outcome in answers.came[settled:])
        assert sorted(answers.partitions) == [0, 1, 2]


async def test_more_than_one_request_takes_goes_in_several(log: ModelLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_link, "TOGETHER_BYTES", 100)
    async with running_node(log) as node, served(node) as url, HttpNodeLink(url) as link:
        answers = Answers(link, log)
        await until(lambda: len(answers.came) == 3)
        assert all(isinstance(outcome, list) for _, outcome in answers.came)
        assert [len(log.records[p]) for p in range(3)] == [2, 2, 2]


async def test_questions_about_the_past_leave_room_for_handoffs_and_signs_of_life(
    log: ModelLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a gateway has died its crowd asks for pages at another one, more than there are connections."""
    may_answer, came = asyncio.Event(), 0

    async def slow(_query: PageQuery) -> HistoryPage:
        nonlocal came
        came += 1
        await may_answer.wait()
        return HistoryPage([], 0)

    async with running_node(log) as node:
        monkeypatch.setattr(node, "page", slow)
        async with served(node) as url, HttpNodeLink(url) as link, asyncio.TaskGroup() as group:
            asked = [group.create_task(link.page(PageQuery(0, 0, 1, 1, 1))) for _ in range(150)]
            await until(lambda: came == 100 - http_link.KEPT_CONNECTIONS)
            assert len(await link.append(log.epoch, 0, events([0]), timeout=TIMEOUT)) == 1
            assert (await link.info()).epoch == log.epoch
            assert not any(task.done() for task in asked)
            may_answer.set()


async def test_a_feed_that_is_not_read_costs_nobody_anything(log: ModelLog) -> None:
    large = b'"' + b"x" * 100_000 + b'"'
    async with running_node(log) as node, served(node, grace=0.2) as url, HttpNodeLink(url) as link:
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        body = encode(FeedRequest(log.epoch, {0: 0}))
        writer.write(f"POST {FEED} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        await until(lambda: node.load().connections == 1)
        for number in range(200):
            await link.append(log.epoch, 0, [event(number, data=large)], timeout=TIMEOUT)
        assert len(await read_feed(link, log, 200)) == 200
        writer.close()
        await until(lambda: node.load().connections == 0)


async def test_a_node_shows_its_metrics() -> None:
    log, telemetry = ModelLog(), Telemetry(version="9.9")
    telemetry.append_took(0.002)
    async with running_node(log) as node, served(node, telemetry=telemetry) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/metrics") as answer:
            text = await answer.text()
            assert answer.status == 200
            assert answer.content_type == "text/plain"
        assert 'cdrs_build_info{version="9.9"} 1.0' in text
        assert "cdrs_log_append_duration_seconds_count 1.0" in text
        headers = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
        async with session.get(f"{url}/metrics", headers=headers) as answer:
            assert answer.content_type == "application/openmetrics-text"
            assert (await answer.text()).endswith("# EOF\n")
        async with session.post(f"{url}/metrics") as answer:
            assert answer.status == 405


async def test_closing_a_link_breaks_its_feeds(log: ModelLog) -> None:
    async with running_node(log) as node, served(node) as url:
        link = HttpNodeLink(url)
        task = asyncio.ensure_future(read_feed(link, log, 1))
        await until(lambda: node.load().connections == 1)
        await link.close()
        with pytest.raises(LinkBroken):
            await task
        with pytest.raises(LinkBroken):
            await link.info()


async def test_a_server_that_stops_breaks_its_feeds_at_once(log: ModelLog) -> None:
    async with running_node(log) as node, AsyncLink() as holder:
        async with served(node) as url:
            link = holder.open(url)
            task = asyncio.ensure_future(read_feed(link, log, 1))
            await until(lambda: node.load().connections == 1)
        with pytest.raises(LinkBroken):
            await asyncio.wait_for(task, 1.0)
        with pytest.raises(LinkBroken):
            await link.info()


async def test_a_server_stops_in_time_although_a_request_hangs() -> None:
    reached = asyncio.Event()

    async def hang(scope: object, receive: object, send: object) -> None:
        reached.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    async with running(lambda: serve(hang, sock, grace=0.1)) as serving:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.wait_for(reached.wait(), TIMEOUT)
        serving.cancel()
        done, _ = await asyncio.wait({serving}, timeout=TIMEOUT)
        assert done
        writer.close()


class AsyncLink:
    """Closes a link that outlives its server."""

    def __init__(self) -> None:
        self._links: list[HttpNodeLink] = []

    def open(self, url: str) -> HttpNodeLink:
        self._links.append(HttpNodeLink(url))
        return self._links[-1]

    async def __aenter__(self) -> AsyncLink:
        return self

    async def __aexit__(self, *_: object) -> None:
        for link in self._links:
            await link.close()


async def test_what_is_no_request_of_ours_gets_an_error_that_we_understand(log: ModelLog) -> None:
    too_long = b"x" * (MAX_CALL + 1)
    other = encode(HandoffRequest(log.epoch, 99, events([1]), 1.0))
    async with running_node(log) as node, served(node) as url, aiohttp.ClientSession(url) as session:
        for method, path, body, status, problem in (
            ("GET", HANDOFF, b"", 405, "method-not-allowed"),
            ("POST", HANDOFF, b"\xc1garbage", 400, "invalid-request"),
            ("POST", HANDOFF, encode([1, 2]), 400, "invalid-request"),
            ("POST", HANDOFF, other, 400, "invalid-request"),
            ("POST", FEED, b"", 400, "invalid-request"),
            ("POST", FEED, too_long, 413, "payload-too-large"),
            ("POST", "/internal/v1/call/page", encode(["x"]), 400, "invalid-request"),
            ("POST", "/internal/v1/call/close", b"", 404, "not-found"),
            ("GET", "/v1/streams", b"", 404, "not-found"),
        ):
            async with session.request(method, path, data=body) as response:
                assert response.status == status, (method, path)
                assert decode(await response.read(), WireError).problem == problem
        for path, status in (("/livez", 200), ("/readyz", 200)):
            async with session.get(path) as response:
                assert response.status == status
        await node.drain(0.1)
        async with session.get("/readyz") as response:
            assert response.status == 503


async def first_batch(link: HttpNodeLink, seen: asyncio.Event) -> FeedBatch:
    async with link.feed(EPOCH, {0: 0}) as feed:
        async for batch in feed:
            seen.set()
            if batch.records:
                return batch
    raise AssertionError("the feed ended")


async def test_a_killed_node_breaks_its_link_at_once() -> None:
    async with node_process() as (process, url), HttpNodeLink(url, call_timeout=30, feed_timeout=30) as link:
        await link.append(EPOCH, 1, events([0]), timeout=TIMEOUT)
        seen = asyncio.Event()
        feed = asyncio.ensure_future(first_batch(link, seen))
        await asyncio.wait_for(seen.wait(), TIMEOUT)
        process.send_signal(signal.SIGKILL)
        with pytest.raises(LinkBroken):
            await asyncio.wait_for(feed, TIMEOUT)
        with pytest.raises(LinkBroken):
            await asyncio.wait_for(link.append(EPOCH, 1, events([1]), timeout=30), TIMEOUT)
        with pytest.raises(LinkBroken):
            await asyncio.wait_for(link.ends(), TIMEOUT)


async def test_a_stopped_node_breaks_its_link_when_the_time_is_up() -> None:
    async with node_process() as (process, url), HttpNodeLink(url, call_timeout=0.5) as link:
        await link.append(EPOCH, 1, events([0]), timeout=TIMEOUT)
        seen = asyncio.Event()
        feed = asyncio.ensure_future(first_batch(link, seen))
        await asyncio.wait_for(seen.wait(), TIMEOUT)
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(LinkBroken):
            await link.append(EPOCH, 0, events([1]), timeout=0.5)
        with pytest.raises(LinkBroken):
            await link.ends()
        with pytest.raises(LinkBroken):
            await asyncio.wait_for(feed, TIMEOUT)
        with pytest.raises(LinkBroken):
            async with link.feed(EPOCH, {0: 0}):
                pass
        os.kill(process.pid, signal.SIGCONT)
        settled = await link.append(EPOCH, 0, events([1]), timeout=TIMEOUT)
        assert settled[0].offset == 0


async def test_a_web_page_gets_nothing_of_a_node(log: ModelLog) -> None:
    async with running_node(log) as node, served(node) as url, aiohttp.ClientSession() as session:
        for headers, status in (({}, 200), ({"Origin": "http://evil.example"}, 400)):
            async with session.post(f"{url}{CALL}ends", data=encode(()), headers=headers) as response:
                assert response.status == status
