"""F30: every call of MongoDB takes seconds, and there may be more calls than connections. Live delivery does not wait
for the store, events are taken until it is too far behind, whoever asks it is answered in time, and nothing is lost."""

from __future__ import annotations

import http.client
import json
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from cdrs_process import CdrsProcess, wait_until
from engine_nodes import engine_variables, primary_port, proxied_url
from mongo_adapter import plain_database
from producers import Ledger, OnceProducer
from pymongo import MongoClient
from slow_link import SlowLink
from sse_socket import Subscriber, data_of
from write_paths import each_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

OLD = 600
"""Events of each of two streams that stand in the log before the process under test starts: more than its index and
its rings keep, so that it has to ask the store about an id, and for a page of what is old."""
SETTINGS = {
    "CDRS_NODE__WINDOW": "256",
    "CDRS_NODE__RING_RECORDS": "256",
    "CDRS_PERSIST__MAX_LAG": "1000",
}
LOADED = 12.0
"""Seconds of load while the store is slow."""
ANSWERED_WITHIN = 15.0
"""Seconds for a page, whatever becomes of it."""
LATE_AT_MOST = 1.0
"""Seconds from the POST of half of all events until a subscriber has them."""


def delay() -> float:
    return random.uniform(1, 3)


def send(cdrs: CdrsProcess, stream: str, numbers: Sequence[int]) -> list[int]:
    """Those of the numbers that were stored."""
    lines = b"".join(b'{"n":%d}\n' % number for number in numbers)
    kind = {"content-type": "application/x-ndjson"}
    answer = cdrs.request("POST", f"/v1/streams/{stream}/events?receipts=errors", lines, headers=kind)
    told = [json.loads(line) for line in answer.body.splitlines()] if answer.status == 200 else []
    failed = {each["line"] for each in told if "problem" in each}
    return [number for at, number in enumerate(numbers, 1) if at not in failed] if told else []


def fill(folder: Path, env: dict[str, str]) -> None:
    with CdrsProcess(folder, env={**env, **SETTINGS}).start(timeout=60) as cdrs:
        for stream in ("slow.old", "slow.ids"):
            assert len(send(cdrs, stream, range(OLD))) == OLD
            wait_until(lambda s=stream: count(env, s) == OLD, 30, "all in the store")


def other_partition(cdrs: CdrsProcess, stream: str) -> str:
    """A stream that lies in another partition: in the same one an event waits for those before it."""
    taken = cdrs.publish(stream, b'{"n":-1}').json()["partition"]
    names = (f"slow.plain{number}" for number in range(50))
    return next(name for name in names if cdrs.publish(name, b'{"n":-1}').json()["partition"] != taken)


class Live:
    """Posts plain events at a steady pace, and how long each took until a subscriber had it."""

    def __init__(self, cdrs: CdrsProcess, stream: str) -> None:
        self.sent: list[int] = []
        self._posted: list[float] = []
        self._cdrs = cdrs
        self.stream = stream

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            number = len(self._posted)
            self._posted.append(now)
            answer = self._cdrs.publish(self.stream, b'{"n":%d}' % number)
            if answer.status == 201:
                self.sent.append(number)
            else:
                assert answer.status == 503, answer
            time.sleep(0.05)

    def late(self, subscriber: Subscriber) -> list[float]:
        """Of each event, in seconds."""
        blocks = [block for block in subscriber.blocks if stream_of(block.data) == self.stream]
        return [block.at - self._posted[number] for block in blocks if (number := number_of(block.data)) >= 0]


def stream_of(data: bytes) -> str:
    return str(json.loads(data)["cdrsstream"])


def number_of(data: bytes) -> int:
    return int(json.loads(data_of(data))["n"])


class Pages:
    """Browsers that read what is old again and again, more of them than there are connections to the store."""

    def __init__(self, cdrs: CdrsProcess) -> None:
        self.statuses: list[int] = []
        self.slowest = 0.0
        self._cdrs = cdrs
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(20)]

    def __enter__(self) -> Pages:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * ANSWERED_WITHIN)

    def __str__(self) -> str:
        return f"pages: {dict(Counter(self.statuses))}, {self.slowest:.1f} s at most"

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            path = "/v1/streams/slow.old/events?limit=500&from=earliest"
            try:
                status = self._cdrs.request("GET", path, headers={"accept": "application/json"}, timeout=30).status
            except (OSError, http.client.HTTPException):
                status = 0
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.statuses.append(status)
            self._stopping.wait(0.2)


@each_path
@pytest.mark.parametrize("pool", [16, 2])
async def test_a_store_that_takes_seconds_for_a_call(tmp_path: Path, pool: int) -> None:
    async with engine_variables() as env:
        fill(tmp_path / "fill", env)
        with ExitStack() as stack:
            link = stack.enter_context(SlowLink(primary_port(), delay))
            url = proxied_url(link, env["CDRS_STORE__URL"])
            through = {**env, **SETTINGS, "CDRS_STORE__URL": url, "CDRS_MONGO__POOL": str(pool)}
            cdrs = CdrsProcess(tmp_path / "cdrs", env=through)
            stack.callback(cdrs.stop)
            cdrs.start(timeout=60)
            live = stack.enter_context(Subscriber(cdrs.port, "slow.>"))
            plain = Live(cdrs, other_partition(cdrs, "slow.ids"))
            wait_until(lambda: cdrs.publish("slow.bulk", b'{"n":-1}').status == 201, 10, "the stream")
            in_store = partial(count, env)
            wait_until(lambda: in_store("slow.bulk") == 1, 30, "all in the store")

            link.slow()
            assert round_trip(url) >= 1
            with OnceProducer(cdrs.port, "slow.ids", pause=0.05) as named, Pages(cdrs) as pages:
                plain.run(LOADED)
                ledger = named.finish()
            late = statistics.median(plain.late(live))
            print(f"pool {pool}: {len(plain.sent)} plain events, p50 {late:.3f} s until they were delivered; {pages}")
            print(f"with ids: {len(ledger.sent)} sent, {ledger.answers}")
            assert late <= LATE_AT_MOST
            assert plain.sent
            assert ledger.acknowledged
            assert "TimeoutError" not in ledger.answers
            assert set(pages.statuses) <= {200, 503}
            assert pages.slowest <= ANSWERED_WITHIN
            bulk = until_refused(cdrs)

            link.fast()
            began = time.monotonic()
            wait_until(lambda: cdrs.publish("slow.bulk", b'{"n":-2}').status == 201, 60, "events to be taken again")
            wait_until(lambda: in_store("slow.bulk") == len(bulk) + 2, 60, "all in the store")
            print(f"all in the store {time.monotonic() - began:.1f} s after it was fast again")
            live.wait_count(len(bulk) + 2 + len(plain.sent) + len(ledger.acknowledged), 30)
            named_ids = check(live, plain, ledger, bulk)
            wait_until(lambda: in_store("slow.ids") == OLD + named_ids, 30, "those with ids in the store")


def check(live: Subscriber, plain: Live, ledger: Ledger, bulk: Sequence[int]) -> int:
    """Everything acknowledged once and in order, and nothing that was refused; how many of ``slow.ids`` came."""
    of_stream: dict[str, list[bytes]] = {}
    for block in list(live.blocks):
        of_stream.setdefault(stream_of(block.data), []).append(block.data)
    assert not [block for block in live.controls if block.event == b"cdrs.gap"]
    assert list(map(number_of, of_stream["slow.bulk"])) == [-1, *bulk, -2]
    assert [number for number in map(number_of, of_stream[plain.stream]) if number >= 0] == plain.sent
    ids = [str(json.loads(data)["id"]) for data in of_stream["slow.ids"]]
    assert len(ids) == len(set(ids)), "an event came twice"
    assert set(ledger.acknowledged) <= set(ids)
    assert not ledger.refused & set(ids)
    known = [each for each in ids if each in ledger.acknowledged]
    assert known == list(ledger.acknowledged), "out of order"
    return len(ids)


def until_refused(cdrs: CdrsProcess) -> list[int]:
    """Send without a pause until the store is too far behind; what was taken."""
    bulk: list[int] = []
    refused = 0.0
    for first in range(0, 100_000, 500):
        began = time.monotonic()
        stored = send(cdrs, "slow.bulk", range(first, first + 500))
        bulk += stored
        if not stored:
            refused = time.monotonic() - began
            break
    print(f"{len(bulk)} more were taken until it was refused, after {refused:.3f} s")
    assert len(bulk) >= 1000
    assert refused, "the bound was not reached"
    answer = cdrs.publish("slow.bulk", b'{"n":-3}')
    assert answer.status == 503, answer
    assert int(answer.headers["retry-after"]) >= 1
    return bulk


def count(env: dict[str, str], stream: str) -> int:
    return plain_database(env).events.count_documents({"s": stream})


def round_trip(url: str) -> float:
    """Seconds of one call, as cdrs has it."""
    with MongoClient[dict[str, object]](url, serverSelectionTimeoutMS=30_000) as client:
        client.admin.command("ping")
        began = time.monotonic()
        client.admin.command("ping")
        return time.monotonic() - began
