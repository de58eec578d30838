"""A hub with two partitions that sweeps, for as long as a test lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.hub import Hub
from shared.clock import Clock
from shared.position import Epoch
from shared.settings import SseSettings
from shared.telemetry import Telemetry


@asynccontextmanager
async def running_hub(epoch: Epoch, clock: Clock, **settings: float) -> AsyncIterator[Hub]:
    """It begins at offset 0 of both; ``settings`` are those of event streams."""
    hub = Hub(SseSettings.model_validate(settings), clock, Telemetry(version="test"))
    hub.start(epoch, {0: 0, 1: 0})
    task = asyncio.create_task(hub.run())
    try:
        yield hub
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
