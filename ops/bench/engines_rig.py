"""cdrs on the set of engines that runs (`scripts/engines up`), in a topic and a database of its own that are gone
afterwards."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from cdrs_process import CdrsProcess, Door
from deployment import Deployment
from engine_set import engine_urls
from machine import cpu_seconds, folder
from pymongo import MongoClient
from sampling import sampled

from shared.backends.kafka.address import parse_kafka_url
from shared.backends.kafka.admin import open_admin
from shared.settings import KafkaSettings


@dataclass
class Rig:
    """Variables for cdrs, and a look behind its back."""

    environment: dict[str, str]
    database: str

    def carried(self) -> int:
        """Sum of the checkpoints: how many offsets the store has."""
        with MongoClient[dict[str, Any]](self.environment["CDRS_STORE__URL"]) as mongo:
            return sum(document["next"] for document in mongo[self.database].checkpoints.find())


@contextmanager
def engines() -> Iterator[Rig]:
    """Topic and database that nobody else uses. Ends with pytest's ``Skipped`` where no set of engines is ready."""
    urls = engine_urls()
    database = f"cdrs_bench_{os.getpid()}"
    store = urlunsplit(urlsplit(urls["CDRS_STORE__URL"])._replace(path=f"/{database}"))
    topic = f"cdrs-bench.{secrets.token_hex(4)}"
    try:
        yield Rig({**urls, "CDRS_STORE__URL": store, "CDRS_KAFKA__TOPIC": topic}, database)
    finally:
        with MongoClient[dict[str, Any]](store) as mongo:
            mongo.drop_database(database)
        asyncio.run(remove_topics(urls["CDRS_LOG__URL"], topic))


async def remove_topics(url: str, prefix: str) -> None:
    """Delete the topics whose names begin so."""
    address, settings = parse_kafka_url(url, KafkaSettings())
    async with open_admin(address, settings) as admin:
        for name in await admin.topics():
            if name.startswith(prefix):
                with suppress(Exception):
                    await admin.delete(name)


@contextmanager
def our_processes(rig: Rig, *args: str, cpus: set[int] | None = None, **settings: str) -> Iterator[CdrsProcess]:
    """`cdrs up` with these arguments on the engines, warm."""
    with folder() as path, CdrsProcess(path, args, env={**rig.environment, **settings}, cpus=cpus) as cdrs:
        warm(cdrs)
        with sampled(cdrs.pid):
            yield cdrs


@contextmanager
def deployed(rig: Rig, *, nodes: int) -> Iterator[Deployment]:
    """Two gateways behind HAProxy, and nodes, on the engines, warm."""
    with folder() as path, Deployment(path / "cdrs", rig.environment, node_count=nodes) as cdrs:
        warm(cdrs)
        yield cdrs


def warm(door: Door) -> None:
    for number in range(50):
        assert door.publish("bench.warm", b'{"n":%d}' % number).status == 201


def cpu_of(cdrs: CdrsProcess | Deployment) -> dict[str, float]:
    """CPU seconds of our server processes so far, by what they are."""
    if isinstance(cdrs, Deployment):
        by_role = {"gateways": cdrs.gateways, "nodes": cdrs.node_list}
        return {role: sum(cpu_seconds(each.pid) for each in those) for role, those in by_role.items()}
    shares = {role: total(cdrs.pids(role)) for role in ("gateway", "node")}
    return shares if any(shares.values()) else {"gateway and node": cpu_seconds(cdrs.pid)}


def total(pids: Sequence[int]) -> float:
    return sum(cpu_seconds(pid) for pid in pids)
