"""Both write paths, on both event loops: the same answers, the same manners, whatever the client does.

Plain sockets on the client's side; the server runs in a thread, so that what is left of a subscription can be seen.
"""

from __future__ import annotations

import gc
import http.client
import json
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest
from cdrs_process import wait_until
from following import Follower, all_gone, following, stalled
from sse_socket import BodyReader
from threaded_server import ThreadedServer, metric, publish, threaded_server

MANNERS = {"heartbeat": 0.4, "stall_timeout": 4.0, "backlog_bytes": 65536, "max_subscribers": 60}
BRIEF = {"heartbeat": 0.2, "max_age": 1.0}


@pytest.fixture(scope="module")
def server(write_path: str, loop: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedServer]:
    folder = tmp_path_factory.mktemp("patient")
    with threaded_server(folder, loop=loop, write_path=write_path, **MANNERS) as running:
        yield running


@pytest.fixture(scope="module")
def brief(write_path: str, loop: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedServer]:
    """One whose streams are rotated after a second."""
    with threaded_server(tmp_path_factory.mktemp("brief"), loop=loop, write_path=write_path, **BRIEF) as running:
        yield running


# --- what is written -------------------------------------------------------------------------------


def test_events_come_in_order_and_idle_streams_get_cursors(server: ThreadedServer) -> None:
    with following(server, "plain.one") as one, following(server, "plain.one") as two:
        one.opened(), two.opened()
        for start in range(0, 300, 100):
            publish(server, "plain.one", 100, first=start)
        for follower in (one, two):
            while len(follower.numbers) < 300:
                assert follower.read()
            assert follower.numbers == list(range(300))
        seen = len(one.blocks)
        while not any(block.event == b"cdrs.cursor" for block in one.blocks[seen:]):
            assert one.read()
    all_gone(server)


def test_the_head_is_the_same_on_both_paths(server: ThreadedServer) -> None:
    with following(server, "plain.head") as follower:
        headers = follower.opened().body.headers
    del headers["date"]
    assert headers == {
        "cache-control": "no-store, no-transform",
        "connection": "keep-alive",
        "content-type": "text/event-stream; charset=utf-8",
        "transfer-encoding": "chunked",
        "vary": "Accept-Encoding",
        "x-accel-buffering": "no",
    }


def test_head_opens_nothing(server: ThreadedServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    for _ in range(2):  # the connection can be used again
        connection.request("HEAD", "/v1/streams/plain.head/events", headers={"Accept": "text/event-stream"})
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"")
        assert response.headers["content-type"].startswith("text/event-stream")
    connection.close()
    assert metric(server, "cdrs_sse_connections ") == 0


def test_history_then_live_without_a_seam(server: ThreadedServer) -> None:
    publish(server, "plain.past", 500)
    with following(server, "plain.past", query="?from=earliest") as follower:
        publish(server, "plain.past", 500, first=500)
        while len(follower.numbers) < 1000:
            assert follower.read()
        assert follower.numbers == list(range(1000))
        place = follower.last_id
    publish(server, "plain.past", 10, first=1000)
    with following(server, "plain.past", f"Last-Event-ID: {place}") as follower:
        assert follower.opened().numbers == list(range(1000, 1010))


def test_nothing_runs_for_a_live_subscription(server: ThreadedServer, write_path: str) -> None:
    publish(server, "plain.quiet", 1)  # what a partition needs is there
    before = server.tasks()
    followers = [Follower(server.port, "plain.quiet").opened() for _ in range(20)]
    try:
        publish(server, "plain.quiet", 1)
        for follower in followers:
            while not follower.numbers:
                assert follower.read()
        wait_until(lambda: metric(server, "cdrs_sse_connections ") == 20, 5, "twenty streams")
        if write_path == "fast":  # the last answers' own tasks may still be ending
            wait_until(lambda: len(server.tasks()) <= len(before), 5, lambda: f"the end of {server.tasks()}")
        else:
            assert len(server.tasks()) >= len(before) + 20
    finally:
        for follower in followers:
            follower.close()
    all_gone(server)


def alive() -> Counter[str]:
    """Objects of a connection and a request that exist now."""
    kinds = {"ConfiguredProtocol", "RequestResponseCycle", "Request", "Subscription", "FastConnection", "TCPTransport"}
    return Counter(name for each in gc.get_objects() if (name := type(each).__name__) in kinds)


def test_nothing_is_kept_of_a_request_nor_left_to_the_collector(
    write_path: str, loop: str, server: ThreadedServer
) -> None:
    if (write_path, loop) != ("fast", "uvloop"):
        pytest.skip("asyncio's transports and sse-starlette's tasks are in reference cycles of their own")
    publish(server, "plain.kept", 1)
    gc.collect()
    gc.disable()
    try:
        before = alive()
        followers = [Follower(server.port, "plain.kept").opened() for _ in range(20)]
        kept = {"FastConnection", "TCPTransport"}  # maybe fewer than 20 more: what was there before may have ended
        wait_until(lambda: (alive() - before).keys() == kept, 5, lambda: f"only {kept}: {alive() - before}")
        for follower in followers:
            follower.close()
        wait_until(lambda: alive() <= before, 5, lambda: f"nothing: {alive() - before}")
    finally:
        gc.enable()


def test_one_too_many_is_told_so_in_band(server: ThreadedServer) -> None:
    followers = [Follower(server.port, "plain.full").opened() for _ in range(60)]
    with following(server, "plain.full") as late:
        while late.read():
            pass
        assert [json.loads(block.data)["reason"] for block in late.blocks] == ["overload"]
        assert late.body.complete
    for follower in followers:
        follower.close()
    all_gone(server)


# --- the end of a stream, and what comes after it --------------------------------------------------


def test_after_the_end_the_connection_is_used_again(brief: ThreadedServer) -> None:
    with following(brief, "brief.one") as follower:
        while follower.read():
            pass
        assert follower.body.complete
        assert json.loads(follower.blocks[-1].data)["reason"] == "rotate"
        follower.body = BodyReader()
        follower.send(b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n")
        while follower.read():
            pass
        assert (follower.body.status, follower.body.complete) == (200, True)


def test_a_request_sent_ahead_is_answered_after_the_stream(brief: ThreadedServer) -> None:
    with following(brief, "brief.ahead") as follower:
        follower.until("cdrs.cursor")
        follower.send(b"GET /livez HTTP/1.1\r\nHost: test\r\n")
        follower.send(b"\r\n")
        while b"0\r\n\r\nHTTP/1.1 200 OK\r\n" not in follower.raw:
            follower.read()
        assert follower.blocks[-1].event == b"cdrs.bye"


def test_a_request_sent_along_is_answered_after_the_stream(brief: ThreadedServer) -> None:
    with closing(socket.create_connection(("127.0.0.1", brief.port), timeout=10)) as client:
        stream = b"GET /v1/streams/brief.along/events HTTP/1.1\r\nHost: test\r\n\r\n"
        client.sendall(stream + b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n")
        raw = b""
        while b"0\r\n\r\nHTTP/1.1 200 OK\r\n" not in raw:
            data = client.recv(65536)
            assert data, raw
            raw += data
        assert b"cdrs.bye" in raw


def test_who_wants_the_connection_closed_gets_it_closed(brief: ThreadedServer) -> None:
    with following(brief, "brief.close", "Connection: close") as follower:
        while follower.read():
            pass
        assert follower.body.complete
        assert follower.ended_by_server()
        assert follower.raw.endswith(b"0\r\n\r\n")


def test_an_old_client_gets_its_stream(brief: ThreadedServer) -> None:
    with following(brief, "brief.old", version="1.0") as follower:
        while follower.read():
            pass
        assert [b.event for b in follower.blocks[:1] + follower.blocks[-1:]] == [b"cdrs.cursor", b"cdrs.bye"]
        assert follower.ended_by_server()


def test_rubbish_behind_the_request_harms_nobody(server: ThreadedServer) -> None:
    with following(server, "bad.rubbish") as follower, following(server, "bad.rubbish") as other:
        follower.opened(), other.opened()
        follower.send(b"\0\1\2 what is this?\r\n\r\n" * 100)
        publish(server, "bad.rubbish", 5)
        for each in (follower, other):
            while len(each.numbers) < 5:
                assert each.read()
    all_gone(server)


def test_a_drain_says_bye_to_everyone(write_path: str, loop: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with threaded_server(tmp_path_factory.mktemp("drained"), loop=loop, write_path=write_path) as server:
        followers = [Follower(server.port, "drained.one").opened() for _ in range(10)]
        server.drain()
        for follower in followers:
            while follower.read():
                pass
            assert json.loads(follower.blocks[-1].data)["reason"] == "drain"
            assert follower.body.complete
            assert follower.ended_by_server()
            follower.close()
        server.thread.join(15)
        assert not server.thread.is_alive()


# --- clients that behave badly ---------------------------------------------------------------------


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_half_closed_is_gone(server: ThreadedServer) -> None:
    with following(server, "bad.half") as follower:
        follower.opened().socket.shutdown(socket.SHUT_WR)
        assert follower.ended_by_server()
    all_gone(server)


@pytest.mark.parametrize("sent", [0, 10, 1000])
def test_aborted_handshakes_leave_nothing(server: ThreadedServer, sent: int) -> None:
    for _ in range(20):
        client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        client.sendall(b"GET /v1/streams/bad.abort/events?from=earliest HTTP/1.1\r\nHost: test\r\n\r\n"[:sent])
        reset(client)
    all_gone(server)


def test_vanished_with_requests_sent_ahead(server: ThreadedServer, caplog: pytest.LogCaptureFixture) -> None:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    client.sendall(b"GET /v1/streams/bad.ahead/events HTTP/1.1\r\nHost: test\r\n\r\n" * 4)
    assert client.recv(65536)
    reset(client)
    all_gone(server)  # the next heartbeat finds it
    assert not caplog.records


def test_resets_in_the_middle_of_everything_harm_nobody(server: ThreadedServer) -> None:
    with following(server, "bad.reset") as steady:
        steady.opened()
        for start in range(0, 400, 40):
            others = [Follower(server.port, "bad.reset", query="?from=earliest") for _ in range(5)]
            publish(server, "bad.reset", 40, first=start, pad="x" * 100)
            for other in others:
                other.read()
                reset(other.socket)
        while len(steady.numbers) < 400:
            assert steady.read()
        assert steady.numbers == list(range(400))
    all_gone(server)


def test_who_takes_nothing_is_cut_and_others_notice_nothing(server: ThreadedServer) -> None:
    with following(server, "bad.stall") as good, closing(stalled(server, "bad.stall", 4096)) as bad:
        good.opened()
        for start in range(0, 4000, 400):
            publish(server, "bad.stall", 400, first=start, pad="x" * 2000)
            while len(good.numbers) < start + 400:
                assert good.read()
        assert good.numbers == list(range(4000))
        wait_until(lambda: metric(server, "cdrs_sse_connections ") == 1, 10, "the other one to be cut")
        while bad.read():
            pass
        assert not bad.body.complete, "cut off without a word"
        got = bad.numbers
        assert got == list(range(len(got)))
        assert len(got) < 4000
        place = [block for block in bad.blocks if block.id][-1].id.decode()
    with following(server, "bad.stall", f"Last-Event-ID: {place}") as again:
        assert again.opened().numbers == list(range(len(got), 4000))
    all_gone(server)


def test_who_is_slow_but_reads_gets_everything_from_history(server: ThreadedServer) -> None:
    with closing(stalled(server, "bad.slow", 65536)) as slow:
        for start in range(0, 1500, 500):  # far more than is kept for a reader
            publish(server, "bad.slow", 500, first=start, pad="x" * 2000)
            assert slow.read()
        while len(slow.numbers) < 1500:
            assert slow.read()
        assert slow.numbers == list(range(1500))
        publish(server, "bad.slow", 10, first=1500)
        while len(slow.numbers) < 1510:
            assert slow.read()
        assert slow.numbers == list(range(1510))
    all_gone(server)
