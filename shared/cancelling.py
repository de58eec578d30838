"""Cancellations that nobody asked for.

Clients of servers run tasks of their own, and now and then let the end of one of them through to their caller, as an
`asyncio.CancelledError` (aiokafka's ``Fetcher.close`` does, while a fetch that failed waits for its next attempt). It
looks like an order to end, and a task group takes it for one: the task is gone without a word.
"""

from __future__ import annotations

import asyncio


def is_cancelled() -> bool:
    """Whether somebody wants the current task to end. While it is False, a `asyncio.CancelledError` is nobody's order,
    but a failure of what was awaited."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
