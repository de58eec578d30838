"""A steady producer through HAProxy while engines die: the longest time in which nothing was acknowledged after each.

Half of the events carry ids of their producer, which nodes must look up in the store; the others get theirs from us."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp
from deployment import Deployment
from engine_place import own_place
from machine import folder
from report import Result

RUNS = 1
RATE = 200
WATCHED = 10.0
"""Seconds after each kill."""
CALM = 0.3
"""Seconds without a receipt that are nothing out of the ordinary."""
STREAMS = 48
"""Over 12 partitions."""
KINDS = ("own ids", "ids from us")


@dataclass
class Producer:
    """Sends at its rate whatever happens, again with the same id where it was told to, and notes when it was answered.

    Each event is given up after 30 s."""

    url: str
    answered: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    worst: dict[str, float] = field(default_factory=dict[str, float])
    """Kind → longest time from an event's first attempt to its receipt."""
    statuses: Counter[int] = field(default_factory=Counter[int])
    given_up: int = 0

    def begin(self) -> None:
        now = time.monotonic()
        self.answered = {kind: [now] for kind in KINDS}
        self.worst = dict.fromkeys(KINDS, 0.0)
        self.statuses.clear()

    def gap(self, kind: str | None = None) -> float:
        """Longest time between two receipts since `begin`, until now."""
        times = sorted(itertools.chain(*self.answered.values()) if kind is None else self.answered[kind])
        return max(b - a for a, b in itertools.pairwise([*times, time.monotonic()]))

    async def run(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as sending:
            due = time.monotonic()
            for number in itertools.count():
                sending.create_task(self._send(session, number))
                due += 1 / RATE
                await asyncio.sleep(max(due - time.monotonic(), 0))

    async def _send(self, session: aiohttp.ClientSession, number: int) -> None:
        kind = KINDS[number % 2]
        named = {"ce-specversion": "1.0", "ce-source": "bench", "ce-type": "tick"}
        headers = {"content-type": "application/json"} | (named | {"ce-id": f"{id(self)}-{number}"} if kind == KINDS[0]
                                                          else {})  # fmt: skip
        url = f"{self.url}/v1/streams/bench.s{number % STREAMS}/events"
        began = time.monotonic()
        while time.monotonic() < began + 30:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with session.post(url, data=b'{"n":%d}' % number, headers=headers) as response:
                    await response.read()
                    self.statuses[response.status] += 1
                    if response.status < 300:
                        now = time.monotonic()
                        self.answered[kind].append(now)
                        self.worst[kind] = max(self.worst.get(kind, 0.0), now - began)
                        return
            await asyncio.sleep(0.1)
        self.given_up += 1


def run(runs: int) -> Result:
    rows: list[list[str]] = []
    worst: dict[str, float] = {}
    with folder() as path:
        for number in range(runs):
            with own_place() as engines, Deployment(path / f"run-{number}", engines.env) as cdrs:
                kills: dict[str, Callable[[], object]] = {
                    "nothing": lambda: None,
                    "Kafka leader": lambda: engines.kill("kafka-leader"),
                    "Hazelcast member": lambda: engines.kill("hazelcast-1"),
                    "MongoDB primary": lambda: engines.kill("mongo-primary"),
                    "a node": lambda: cdrs.kill_node(0),
                    "a gateway": cdrs.gateways[0].kill,
                }
                asyncio.run(measure(cdrs.url, kills, engines.mend, rows, worst))
    others = max(gap for name, gap in worst.items() if name not in {"nothing", "Kafka leader"})
    return Result(
        ["killed", "longest without a receipt, s", *(f"the same, {kind}, s" for kind in KINDS), "slowest event, s",
         "answers"], rows,
        f"Kafka broker {worst['Kafka leader']:.2f} s, others at most {others:.2f} s",
        f"{worst['nothing']:.2f} s while nothing is killed",
        "Kafka broker <= 5 s, others <= 0.5 s",
    )  # fmt: skip


async def measure(
    url: str,
    kills: dict[str, Callable[[], object]],
    mend: Callable[[], None],
    rows: list[list[str]],
    worst: dict[str, float],
) -> None:
    producer = Producer(url)
    steady = asyncio.create_task(producer.run())
    try:
        await asyncio.sleep(10)  # the first seconds of brokers and connections are slow
        for name, kill in kills.items():
            producer.begin()
            await asyncio.to_thread(kill)
            await asyncio.sleep(WATCHED)
            gap = producer.gap()
            worst[name] = max(gap, worst.get(name, 0.0))
            answers = ", ".join(f"{count} x {status}" for status, count in sorted(producer.statuses.items()))
            rows.append([name, f"{gap:.2f}", *(f"{producer.gap(kind):.2f}" for kind in KINDS),
                         f"{max(producer.worst.values()):.2f}", answers])  # fmt: skip
            print("  ".join(rows[-1]), flush=True)
            await asyncio.to_thread(mend)
            await settled(producer)
        assert not producer.given_up, f"{producer.given_up} events were never acknowledged"
    finally:
        steady.cancel()
        with suppress(asyncio.CancelledError):
            await steady


async def settled(producer: Producer) -> None:
    """Until what was mended is no longer felt: for 5 s nothing was out of the ordinary. At most a minute."""
    for _ in range(12):
        producer.begin()
        await asyncio.sleep(5)
        if producer.gap() < CALM:
            return
