"""Cancellations that nobody asked for, and work that goes on in spite of one.

Clients of servers run tasks of their own, and now and then let the end of one of them through to their caller, as an
`asyncio.CancelledError` (aiokafka's ``Fetcher.close`` does, while a fetch that failed waits for its next attempt). It
looks like an order to end, and a task group takes it for one: the task is gone without a word.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def is_cancelled() -> bool:
    """Whether somebody wants the current task to end. While it is False, a `asyncio.CancelledError` is nobody's order,
    but a failure of what was awaited."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for bounded work even when cancelled meanwhile; the cancellation goes on afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
