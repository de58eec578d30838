"""The suites' fixtures. Which adapters they run against stands in ``tests/support/adapters.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from adapters import LOG_ADAPTERS, REGISTRY_ADAPTERS, LogAdapter

from shared.ports import EventLog, EventStore, NodeRegistry


@pytest.fixture(params=LOG_ADAPTERS)
async def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LogAdapter]:
    adapter = LOG_ADAPTERS[request.param](tmp_path)
    yield adapter
    await adapter.remove()


@pytest.fixture
async def opened(adapter: LogAdapter) -> AsyncIterator[tuple[EventLog, EventStore | None]]:
    async with adapter.open() as pair:
        yield pair


@pytest.fixture
def log(opened: tuple[EventLog, EventStore | None]) -> EventLog:
    return opened[0]


@pytest.fixture
def store(opened: tuple[EventLog, EventStore | None]) -> EventStore:
    if opened[1] is None:
        pytest.skip("this log's store is another adapter's")
    return opened[1]


@pytest.fixture
async def elsewhere(adapter: LogAdapter, opened: tuple[EventLog, EventStore | None]) -> AsyncIterator[EventLog]:
    """The same log, as another process has it."""
    async with adapter.open() as pair:
        yield pair[0]


@pytest.fixture(params=REGISTRY_ADAPTERS)
async def registries(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[NodeRegistry, NodeRegistry]]:
    """One registry as two processes have it."""
    open_one = REGISTRY_ADAPTERS[request.param](tmp_path)
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(open_one()), await stack.enter_async_context(open_one())
