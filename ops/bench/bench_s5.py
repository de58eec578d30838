"""S5: 5,000 subscribers in gzip, 10 events of 222 bytes a second, 1 % of them replaced each second."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from cdrs_process import CdrsProcess, environment, pinned, request
from fan_out import all_descriptors, compiled
from machine import LOADER_CPUS, cpu_seconds, our_server, rss_kib
from report import Result
from sse_socket import BodyReader, EventStreamParser

RUNS = 3
SIZES = (50, 5_000)
RATE = 10
SECONDS = 30
CHURN = 0.01
STREAM = "bench.crowd"
PATH = f"/v1/streams/{STREAM}/events"
SAMPLE = 20
"""Readers beside them that inflate what they get, and look at every event."""
_WORDS = ("alpha", "amsterdam", "buy", "closed", "delta", "filled", "limit", "london", "open", "paris", "sell", "tokyo")


@dataclass
class Found:
    """Of one server with one crowd."""

    bytes_each: float
    """Bytes on the wire for each event and subscriber, heads and openings of those who join included."""
    us_per_event: float
    """In the compressor, as the server counts it."""
    cpu: float
    """Of the server's core."""
    kib: float
    """Resident, for each subscriber."""
    checked: int


def run(runs: int) -> Result:
    all_descriptors()
    rows: list[list[str]] = []
    found: dict[tuple[int, str], list[Found]] = {}
    for number in range(runs):
        for size in SIZES:
            for coding in ("identity", "gzip"):
                one = asyncio.run(measure(size, coding))
                found.setdefault((size, coding), []).append(one)
                rows.append([
                    str(number + 1), str(size), coding, f"{one.bytes_each:.0f}", f"{one.us_per_event:.1f}",
                    f"{one.cpu:.1%}", f"{one.kib:.2f}", str(one.checked),
                ])  # fmt: skip

    def middle(size: int, coding: str, what: str) -> float:
        return statistics.median(getattr(each, what) for each in found[size, coding])

    most = SIZES[-1]
    share = middle(most, "gzip", "bytes_each") / middle(most, "identity", "bytes_each")
    flat = ", ".join(f"{middle(size, 'gzip', 'us_per_event'):.1f} us with {size} readers" for size in SIZES)
    more = middle(most, "gzip", "kib") - middle(most, "identity", "kib")
    return Result(
        ["run", "subscribers", "coding", "bytes/event", "us in the compressor/event", "CPU", "KiB each", "checked"],
        rows,
        f"{flat} for each event; {middle(most, 'gzip', 'bytes_each'):.0f} bytes for an event and subscriber, "
        f"{share:.2f} of the text; {more:.2f} KiB more for each",
        f"the same without: {middle(most, 'identity', 'bytes_each'):.0f} bytes, "
        f"{middle(most, 'identity', 'cpu'):.1%} of the core against {middle(most, 'gzip', 'cpu'):.1%}",
        "<= 12 us whatever their number, <= 1/3 of the bytes, <= 0.3 KiB each",
        [f"{RATE} events/s for {SECONDS} s, {CHURN:.0%} of the subscribers leave and as many join each second",
         f"checked: events that {SAMPLE} more readers, replaced in turn, have inflated and found whole and in order",
         "us: CPU time of the thread in the compressor, as cdrs_sse_gzip_seconds_total counts it"],
    )  # fmt: skip


def payload(number: int, chance: random.Random) -> bytes:
    """222 bytes of JSON, about a third of it never the same."""
    known = {
        "n": number, "user": chance.randrange(10**6), "symbol": chance.choice(_WORDS).upper(),
        "price": round(chance.uniform(1, 1000), 2), "quantity": chance.randrange(1000), "side": chance.choice(_WORDS),
        "status": chance.choice(_WORDS), "note": "",
    }  # fmt: skip
    text = json.dumps(known, separators=(",", ":"))
    known["note"] = " ".join(chance.choice(_WORDS) for _ in range(40))[: 222 - len(text)]
    return json.dumps(known, separators=(",", ":")).encode()


async def measure(size: int, coding: str) -> Found:
    with our_server() as cdrs:
        assert cdrs.publish(STREAM, b'{"n":-1}').status == 201
        with crowd(cdrs, size // 5, coding):  # what a crowd leaves behind once is not counted
            pass
        rss = rss_kib(cdrs.pid)
        with crowd(cdrs, size, coding) as loader:
            async with sampled(cdrs, coding) as sample:
                await publish(cdrs, 0, RATE * 5)
                before, used = counted(cdrs), cpu_seconds(cdrs.pid)
                loader.begin(SECONDS, CHURN * size)
                await publish(cdrs, RATE * 5, RATE * SECONDS)
                said = await asyncio.to_thread(loader.answer)
                after, cpu = counted(cdrs), cpu_seconds(cdrs.pid) - used
                kib = (rss_kib(cdrs.pid) - rss) / size
            assert said["lost"] == 0, said
        events = after["events"] - before["events"]
        assert events >= RATE * SECONDS * (coding == "gzip"), "not deflated"
        took = (after["seconds"] - before["seconds"]) * 1e6 / events if events else 0.0
    share = cpu / said["seconds"]
    return Found(said["bytes"] / (RATE * SECONDS * size), took, share, kib, sample.checked)


def counted(cdrs: CdrsProcess) -> dict[str, float]:
    text = request(cdrs.port, "GET", "/metrics").body.decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(lines[f"cdrs_sse_gzip_{name}_total"]) for name in ("events", "seconds")}


async def publish(cdrs: CdrsProcess, first: int, count: int) -> None:
    chance, loop = random.Random(first), asyncio.get_running_loop()
    begun = loop.time()
    for number in range(count):
        await asyncio.sleep(max(0.0, begun + number / RATE - loop.time()))
        answer = await asyncio.to_thread(cdrs.publish, STREAM, payload(first + number, chance))
        assert answer.status == 201


class Crowd:
    """`crowd.c` with its subscribers open."""

    def __init__(self, process: subprocess.Popen[str], size: int) -> None:
        self._process = process
        assert self.answer()["open"] == size

    def begin(self, seconds: float, churn: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"watch {seconds} {churn}\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        said: dict[str, float] = json.loads(self._process.stdout.readline())
        return said


@contextmanager
def crowd(cdrs: CdrsProcess, size: int, coding: str) -> Iterator[Crowd]:
    argv = [*pinned(LOADER_CPUS), str(compiled("crowd")), str(cdrs.port), str(size), PATH, coding]
    process = subprocess.Popen(
        argv, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )
    try:
        yield Crowd(process, size)
    finally:
        process.kill()
        process.wait(5)


@dataclass
class Sample:
    """Readers that look at what they get."""

    checked: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


@asynccontextmanager
async def sampled(cdrs: CdrsProcess, coding: str) -> AsyncIterator[Sample]:
    """`SAMPLE` readers, the oldest replaced by a new one each second."""
    sample = Sample()
    async with asyncio.TaskGroup() as group:

        def more() -> None:
            sample.tasks.append(group.create_task(follow(cdrs.port, coding, sample)))

        async def replace() -> None:
            while True:
                await asyncio.sleep(1)
                sample.tasks.pop(0).cancel()
                more()

        for _ in range(SAMPLE):
            more()
        replacing = group.create_task(replace())
        yield sample
        for task in (replacing, *sample.tasks):
            task.cancel()


async def follow(port: int, coding: str, sample: Sample) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {PATH} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {coding}\r\n\r\n".encode())
    body, parser, inflater = BodyReader(), EventStreamParser(), zlib.decompressobj(31)
    last: int | None = None
    try:
        while data := await reader.read(65536):
            text = body.feed(data)
            if body.headers.get("content-encoding") == "gzip":
                text = inflater.decompress(text)
            else:
                assert coding != "gzip" or not body.status, "the crowd is too small"
            for block in parser.feed(text):
                if not block.is_control:
                    number = json.loads(block.data)["data"]["n"]
                    assert last is None or number == last + 1, (last, number)
                    last = number
                    sample.checked += 1
        raise AssertionError("the server ended it")
    finally:
        writer.close()
