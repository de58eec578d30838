"""A place on the set of engines under test where nobody else writes: a topic and a database; and who of the set was
killed, to be started again at the end."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from engine_set import EXPENDABLE, SHARED, EngineSet, engine_urls
from pymongo import MongoClient


@dataclass
class Engines:
    """The set under test."""

    members: EngineSet
    env: dict[str, str]
    """Variables that point cdrs at the place."""
    database: str
    topic: str
    killed: list[str] = field(default_factory=list)

    @property
    def window(self) -> int:
        return int(self.env["CDRS_NODE__WINDOW"])

    def kill(self, member: str) -> str:
        """SIGKILL a member while all others run, so that there stays a quorum; its name."""
        for _ in range(5):
            with suppress(AssertionError):  # on a busy machine there may just be an election
                name = self.members("kill", member).split()[-1]
                self.killed.append(name)
                return name
            time.sleep(1)
        raise AssertionError(f"{member} cannot be killed")

    def mend(self) -> None:
        """Start whoever was killed."""
        if self.killed:
            self.members.mend()
            self.killed.clear()


@contextmanager
def own_place(**extra: str) -> Iterator[Engines]:
    """A new place, gone afterwards, when all members run again. Skips the test where there are no engines."""
    if EXPENDABLE:
        SHARED.mend()
    urls = engine_urls()
    token = f"{os.getpid()}_{secrets.token_hex(4)}"
    database, topic = f"cdrs_job_{token}", f"cdrs-test.{token}"
    store = urlunsplit(urlsplit(urls["CDRS_STORE__URL"])._replace(path=f"/{database}"))
    env = {
        "CDRS_LOG__URL": urls["CDRS_LOG__URL"],
        "CDRS_REGISTRY__URL": urls["CDRS_REGISTRY__URL"],
        "CDRS_STORE__URL": store,
        "CDRS_KAFKA__TOPIC": topic,
        # HAProxy's interval between checks x fall, and a little more: until then producers are still sent here.
        "CDRS_GATEWAY__DRAIN_DELAY": "2.5",
        **extra,
    }
    engines = Engines(SHARED, env, database, topic)
    try:
        yield engines
    finally:
        engines.mend()
        with suppress(Exception):
            asyncio.run(_delete_topics(env["CDRS_LOG__URL"], topic))
        with MongoClient[dict[str, object]](store) as mongo:
            mongo.drop_database(database)


async def _delete_topics(url: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=urlsplit(url).netloc.split(","))
    await admin.start()
    try:
        await admin.delete_topics([name for name in await admin.list_topics() if name.startswith(topic)])
    finally:
        await admin.close()
