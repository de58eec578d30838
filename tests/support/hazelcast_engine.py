"""Hazelcast for tests: registries on a cluster that all share."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine_set import engine_url

from shared.backends.hazelcast.registry import HazelcastRegistry, open_hazelcast_registry
from shared.settings import RegistrySettings


def new_prefix() -> str:
    """For structures that no other test sees."""
    return f"cdrs-test-{uuid.uuid4().hex[:12]}"


def shared_cluster() -> str:
    """Its URL; skips the test where there is none."""
    return engine_url("hazelcast")


@asynccontextmanager
async def connected(url: str, settings: RegistrySettings, *, prefix: str) -> AsyncIterator[HazelcastRegistry]:
    """A registry that has found its cluster."""
    async with open_hazelcast_registry(url, settings, prefix=prefix) as registry:
        await found(registry)
        yield registry


async def found(registry: HazelcastRegistry, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while registry.detail:
        assert time.monotonic() < deadline, registry.detail
        await asyncio.sleep(0.01)
