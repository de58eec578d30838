"""F20 on Kafka: the disk of one broker is full, then those of all. The others carry on, or nothing is acknowledged;
nothing is lost; and with room again, and the brokers started again, all is as it was.

A broker whose only disk fails ends itself. Each has a small tmpfs for its data here.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from cdrs_process import CdrsProcess, wait_until
from engine_place import own_place
from engine_set import EngineSet, engine_url
from ledger_load import LedgerLoad
from small_disk import fill, small_disk
from write_paths import each_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

BROKERS = ("kafka-1", "kafka-2", "kafka-3")
MEBIBYTES = 96
GOES_ON_WITHIN = 30.0
"""Seconds without a receipt while leaders move: a broker is missed after 3 s, one that does not answer later."""
ANSWERED_WITHIN = 11.0
"""Seconds: ``gateway.produce_timeout`` and a little."""


@dataclass
class Place:
    """Brokers whose disks can be filled, and cdrs on them."""

    brokers: EngineSet
    disks: dict[str, Path]
    topic: str
    cdrs: CdrsProcess
    load: LedgerLoad

    def fill(self, *names: str) -> list[Path]:
        return [fill(self.disks[name]) for name in names]

    def await_end(self, *names: str) -> None:
        """Until these brokers have given up."""
        began = time.monotonic()

        def down() -> bool:
            states = {each["name"]: each["state"] for each in self.brokers.status()["members"]}
            return all(states[name] == "down" for name in names)

        wait_until(down, 120, f"{', '.join(names)} to end", every=0.5)
        print(f"{', '.join(names)} ended {time.monotonic() - began:.1f} s later")

    def start(self, *names: str) -> None:
        """Start brokers again; until every partition has three copies in step."""
        self.brokers("start", *names)
        wait_until(lambda: asyncio.run(self._lacking()) == 0, 60, "three copies of each partition", every=0.5)

    async def _lacking(self) -> int:
        admin = AIOKafkaAdminClient(bootstrap_servers=urlsplit(self.brokers.url("kafka")).netloc.split(","))
        await admin.start()
        try:
            names = [name for name in await admin.list_topics() if name.startswith(self.topic)]
            topics = await admin.describe_topics(names)
            return sum(len(BROKERS) - len(each["isr"]) for topic in topics for each in topic["partitions"])
        finally:
            await admin.close()


@contextmanager
def small_brokers(folder: Path) -> Iterator[tuple[EngineSet, dict[str, Path]]]:
    """Brokers of the test's own, each with a disk of its own."""
    brokers = EngineSet(f"full-{os.getpid()}", folder)
    with ExitStack() as stack:
        stack.callback(brokers, "down", "--purge")
        with ExitStack() as mounted:
            # Ended before the disks go, for they hold them; purged behind that, as what is mounted cannot be removed.
            disks = {
                name: mounted.enter_context(small_disk(folder / name / "data", mebibytes=MEBIBYTES)) for name in BROKERS
            }
            mounted.callback(brokers, "down", "--keep")
            brokers("up", "--only", "kafka")
            yield brokers, disks


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        brokers, disks = stack.enter_context(small_brokers(folder / "set"))
        engines = stack.enter_context(own_place(CDRS_LOG__URL=brokers.url("kafka")))
        cdrs = CdrsProcess(folder / "cdrs", ["--nodes", "2"], env=engines.env)
        stack.callback(cdrs.stop)
        cdrs.start(timeout=60)
        load = LedgerLoad(cdrs.port, "full", stack)
        load.go_on("the load", 30)
        yield Place(brokers, disks, engines.topic, cdrs, load)


@each_path
def test_the_disk_of_one_broker_then_of_all_is_full(tmp_path: Path) -> None:
    engine_url("kafka")  # skips where no engines are wanted
    with place(tmp_path) as it:
        ballast = it.fill("kafka-2")
        it.load.go_on("the disk of kafka-2 is full", GOES_ON_WITHIN, more=100)
        it.await_end("kafka-2")
        it.load.go_on("kafka-2 has ended", GOES_ON_WITHIN, more=100)
        refused = it.load.told(503)
        ballast[0].unlink()
        it.start("kafka-2")
        it.load.go_on("kafka-2 is back", GOES_ON_WITHIN)
        it.brokers("kill", "kafka-1")  # what is acknowledged now stands on the one that was full
        it.load.go_on("kafka-1 is gone", GOES_ON_WITHIN, more=50)
        it.start("kafka-1")
        print(f"{refused} requests refused while one disk was full")

        ballast = it.fill(*BROKERS)
        it.await_end(*BROKERS)
        began = time.monotonic()
        answer = it.cdrs.publish("aside", b"1")
        took = time.monotonic() - began
        print(f"all disks full: {answer.status} {answer.json()['type']} after {took:.3f} s")
        # Not told at once, nor for certain: each of the nodes is tried until the time is over.
        assert answer.status in {503, 504}, answer
        assert took <= ANSWERED_WITHIN
        for each in ballast:
            each.unlink()
        it.start(*BROKERS)
        it.load.go_on("there is room again", 2 * GOES_ON_WITHIN, more=50)
        it.load.finish()
