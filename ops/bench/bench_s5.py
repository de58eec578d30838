"""S5: 5,000 subscribers in gzip, 10 events of 222 bytes a second, 1 % of them replaced each second.

Beside it, in turns: the same without a coding; F, plain send() in C, for the core's part that any server needs; and the
compressor alone. B0 is not: 50,000 deliveries a second would take it four cores.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from bench_compress import alone, order
from cdrs_process import CdrsProcess, environment, pinned, request
from fan_out import all_descriptors, compiled, floor
from machine import LOADER_CPUS, beside_the_loader, our_server, percentile, rss_kib, thread_seconds
from report import Result
from sse_socket import BodyReader, EventStreamParser

RUNS = 3
SIZES = (50, 5_000)
CODINGS = ("identity", "gzip")
RATE = 10
SECONDS = 30
CHURN = 0.01
STREAM = "bench.crowd"
PATH = f"/v1/streams/{STREAM}/events"
SAMPLE = 20
"""Readers beside them that inflate what they get, and look at every event."""


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
    mib: float
    loader: float
    """The share of its core that the crowd used."""
    sample: Sample

    @property
    def p50_ms(self) -> float:
        return percentile(sorted(self.sample.delays), 0.5)

    @property
    def p99_ms(self) -> float:
        return percentile(sorted(self.sample.delays), 0.99)

    @property
    def max_ms(self) -> float:
        return max(self.sample.delays)


def run(runs: int) -> Result:
    all_descriptors()
    rows: list[list[str]] = []
    found: dict[tuple[int, str], list[Found]] = {}
    deflating: list[float] = []
    with beside_the_loader():  # where the sample is read
        for number in range(runs):
            deflating.append(alone())
            for size, coding in [(SIZES[-1], "F"), *((size, coding) for size in SIZES for coding in CODINGS)]:
                one = asyncio.run(measure_floor(size) if coding == "F" else measure(size, coding))
                found.setdefault((size, coding), []).append(one)
                rows.append(row(number, size, coding, one))

    def middle(size: int, coding: str, what: str) -> float:
        return statistics.median(getattr(each, what) for each in found[size, coding])

    most = SIZES[-1]
    share = middle(most, "gzip", "bytes_each") / middle(most, "identity", "bytes_each")
    flat = ", ".join(f"{middle(size, 'gzip', 'us_per_event'):.1f} us with {size} readers" for size in SIZES)
    more = middle(most, "gzip", "kib") - middle(most, "identity", "kib")
    return Result(
        ["run", "subscribers", "coding", "bytes/event", "us in the compressor/event", "CPU", "KiB each", "checked",
         "p50 ms", "p99 ms", "max ms", "MiB", "loader"],
        rows,
        f"{flat} for each event; {middle(most, 'gzip', 'bytes_each'):.0f} bytes for an event and subscriber, "
        f"{share:.2f} of the text; {more:.2f} KiB more for each",
        f"the same without: {middle(most, 'identity', 'bytes_each'):.0f} bytes, "
        f"{middle(most, 'identity', 'cpu'):.1%} of the core against {middle(most, 'gzip', 'cpu'):.1%}; "
        f"F {middle(most, 'F', 'cpu'):.1%}",
        "<= 12 us whatever their number, <= 1/3 of the bytes, <= 0.3 KiB each",
        [f"{RATE} events/s for {SECONDS} s, {CHURN:.0%} of the subscribers leave and as many join each second",
         f"checked: events that {SAMPLE} more readers, replaced in turn, have inflated and found whole and in order",
         "ms: from before the POST until one of them had it; loader: the share of its core that the crowd used",
         "us: CPU time of the thread in the compressor, as cdrs_sse_gzip_seconds_total counts it",
         f"the compressor alone, one event straight after another: {statistics.median(deflating):.1f} us"],
        figures=figures(middle, statistics.median(deflating)),
    )  # fmt: skip


def figures(middle: Callable[[int, str, str], float], deflating: float) -> dict[str, dict[str, float]]:
    """F's part is the core's only: its frames are those without a coding."""
    most = SIZES[-1]

    def of(coding: str) -> dict[str, float]:
        names = {"bytes/event": "bytes_each", "KiB each": "kib", "p99_ms": "p99_ms", "core": "cpu"}
        return {name: middle(most, coding, what) for name, what in names.items()}

    compressor = {size: f"compressor us/event, {size}" for size in SIZES}
    ours = {name: middle(size, "gzip", "us_per_event") for size, name in compressor.items()}
    return {
        "cdrs": of("gzip") | ours,
        "identity": of("identity"),
        "F": {"core": middle(most, "F", "cpu")},
        "zlib 4": dict.fromkeys(compressor.values(), deflating),
    }


def row(number: int, size: int, coding: str, one: Found) -> list[str]:
    times = [f"{each:.1f}" for each in (one.p50_ms, one.p99_ms, one.max_ms)] if one.sample.delays else ["-"] * 3
    return [
        str(number + 1), str(size), coding, f"{one.bytes_each:.0f}", f"{one.us_per_event:.1f}", f"{one.cpu:.1%}",
        f"{one.kib:.2f}", str(one.sample.checked), *times, f"{one.mib:.0f}", f"{one.loader:.2f}",
    ]  # fmt: skip


async def measure(size: int, coding: str) -> Found:
    with our_server() as cdrs:
        assert cdrs.publish(STREAM, b'{"n":-1}').status == 201
        with crowd(cdrs.port, size // 5, coding):  # what a crowd leaves behind once is not counted
            pass
        rss = rss_kib(cdrs.pid)
        with crowd(cdrs.port, size, coding) as loader:
            async with sampled(cdrs, coding) as sample:
                before = counted(cdrs)
                found = await watched(cdrs.port, PATH, cdrs.pid, loader, sample)
                after = counted(cdrs)
                found.kib = (rss_kib(cdrs.pid) - rss) / size
        events = after["events"] - before["events"]
        assert events >= RATE * SECONDS * (coding == "gzip"), "not deflated"
        found.us_per_event = (after["seconds"] - before["seconds"]) * 1e6 / events if events else 0.0
    return found


async def measure_floor(size: int) -> Found:
    """F with the same crowd and events."""
    with floor() as server:
        rss = server.rss()
        with crowd(server.port, size, "identity") as loader:
            found = await watched(server.port, server.post, server.pids[0], loader, Sample())
            found.kib = (server.rss() - rss) / size
    return found


async def watched(port: int, post: str, pid: int, loader: Crowd, sample: Sample) -> Found:
    """Events while the crowd comes and goes; what it cost the server and the crowd."""
    await publish(port, post, 0, RATE * 5, sample)
    sample.delays.clear()
    used, own = thread_seconds(pid), loader.cpu()
    loader.begin(SECONDS, CHURN * loader.size)
    await publish(port, post, RATE * 5, RATE * SECONDS, sample)
    said = await asyncio.to_thread(loader.answer)
    assert said["lost"] == 0, said
    cpu, load = (spent / said["seconds"] for spent in (thread_seconds(pid) - used, loader.cpu() - own))
    bytes_each = said["bytes"] / (RATE * SECONDS * loader.size)
    return Found(bytes_each, 0.0, cpu, 0.0, rss_kib(pid) / 1024, load, sample)


def counted(cdrs: CdrsProcess) -> dict[str, float]:
    text = request(cdrs.port, "GET", "/metrics").body.decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(lines[f"cdrs_sse_gzip_{name}_total"]) for name in ("events", "seconds")}


async def publish(port: int, path: str, first: int, count: int, sample: Sample) -> None:
    chance, loop = random.Random(first), asyncio.get_running_loop()
    begun = loop.time()
    for number in range(first, first + count):
        await asyncio.sleep(max(0.0, begun + (number - first) / RATE - loop.time()))
        sample.sent[number] = time.monotonic()
        head = {"content-type": "application/json"}
        answer = await asyncio.to_thread(request, port, "POST", path, order(number, chance), head)
        assert answer.status == 201


class Crowd:
    """`crowd.c` with its subscribers open."""

    def __init__(self, process: subprocess.Popen[str], size: int) -> None:
        self._process = process
        self.size = size
        assert self.answer()["open"] == size

    def cpu(self) -> float:
        """Seconds that it has used."""
        return thread_seconds(self._process.pid)

    def begin(self, seconds: float, churn: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"watch {seconds} {churn}\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        said: dict[str, float] = json.loads(self._process.stdout.readline())
        return said


@contextmanager
def crowd(port: int, size: int, coding: str) -> Iterator[Crowd]:
    argv = [*pinned(LOADER_CPUS), str(compiled("crowd")), str(port), str(size), PATH, coding]
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
    sent: dict[int, float] = field(default_factory=dict)
    delays: list[float] = field(default_factory=list)
    """From before an event was sent until one of them had it: milliseconds."""


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
                    if number in sample.sent:
                        sample.delays.append((time.monotonic() - sample.sent[number]) * 1e3)
        raise AssertionError("the server ended it")
    finally:
        writer.close()
