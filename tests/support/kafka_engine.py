"""Where the Kafka of the tests is, and logs in it that are gone after the test."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine_set import engine_url

from shared.backends.kafka.address import parse_kafka_url
from shared.backends.kafka.admin import open_admin
from shared.backends.kafka.hooks import KafkaHooks
from shared.backends.kafka.log import KafkaLog, open_kafka_log
from shared.clock import SystemClock
from shared.settings import KafkaSettings, LogSettings

PREFIX = "cdrs-test"


def kafka_url() -> str:
    """Where Kafka is. Skips the test where there is none."""
    return engine_url("kafka")


class KafkaTopics:
    """Topics of one test, by a prefix of their own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = f"{PREFIX}.{secrets.token_hex(4)}"

    def settings(self, name: str = "one", **changes: object) -> KafkaSettings:
        return KafkaSettings.model_validate({"topic": f"{self.prefix}.{name}", **changes})

    @asynccontextmanager
    async def open(
        self, name: str = "one", *, partitions: int = 3, hooks: KafkaHooks | None = None, **changes: object
    ) -> AsyncIterator[KafkaLog]:
        """The log of this name, as one more process has it."""
        settings = LogSettings(partitions=partitions)
        async with open_kafka_log(
            self.url, settings, SystemClock(), kafka=self.settings(name, **changes), hooks=hooks
        ) as log:
            yield log

    async def remove(self) -> None:
        """Remove every topic of this test."""
        address, settings = parse_kafka_url(self.url, KafkaSettings())
        async with open_admin(address, settings) as admin:
            for name in await admin.topics():
                if name.startswith(self.prefix):
                    await admin.delete(name)
