"""Two small tools for the node's tasks: a wake-up call with a bounded wait, and a supervisor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from shared.cancelling import is_cancelled
from shared.clock import Clock
from shared.errors import OutcomeUnknown, Unavailable
from shared.telemetry import Telemetry

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
HEALTHY_AFTER = 5.0
"""A task that ran so long, in seconds, starts again with the shortest pause."""
SHOWN_FOR = 10.0
"""Seconds for which a failure is told to who asks."""


class Wakeup:
    """A coalescing signal for one waiting task: `set` any number of times, `wait` returns once."""

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[bool] | None = None

    def set(self) -> None:
        """Wake the waiting task, or let its next `wait` return at once."""
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    async def wait(self, timeout: float) -> bool:
        """Wait for `set`, at most ``timeout`` seconds; False where nothing was set. Resets the signal."""
        if not self._is_set:
            loop = asyncio.get_running_loop()
            waiter = self._waiter = loop.create_future()
            timer = loop.call_later(timeout, _expire, waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiter = None
        woken, self._is_set = self._is_set, False
        return woken


def _expire(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)


class Supervisor:
    """Runs the background tasks of a node, again and again, and knows which of them fail."""

    def __init__(self, clock: Clock, telemetry: Telemetry | None = None) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._failures: dict[str, tuple[float, str]] = {}
        """Task → when it last failed, and of what."""

    async def run(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work`` for ever: whenever it fails or returns, say so and start it again, after a pause that doubles
        from 50 ms to 2 s. Ends by cancellation only. What it could not reach is no failure of its own."""
        pause = FIRST_PAUSE
        while True:
            started = self._clock.monotonic()
            try:
                await work()
                logger.warning("%s ended; starting it again in %.2f s", name, pause)
            except (Unavailable, OutcomeUnknown) as error:
                logger.warning("%s: %s; trying again in %.2f s", name, error, pause)
            except asyncio.CancelledError as error:
                if is_cancelled():
                    raise
                self._failed(name, error, pause)
            except Exception as error:  # noqa: BLE001 - told, counted and tried again
                self._failed(name, error, pause)
            if self._clock.monotonic() - started > HEALTHY_AFTER:
                pause = FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _failed(self, name: str, error: BaseException, pause: float) -> None:
        logger.error("%s failed; starting it again in %.2f s", name, pause, exc_info=error)
        self._failures[name] = self._clock.monotonic(), type(error).__name__
        if self._telemetry is not None:
            self._telemetry.task_failed()

    @property
    def trouble(self) -> str:
        """Which tasks have failed of late; empty when none."""
        since = self._clock.monotonic() - SHOWN_FOR
        self._failures = {name: found for name, found in self._failures.items() if found[0] > since}
        return ", ".join(f"{name} failed ({what}) and was started again" for name, (_, what) in self._failures.items())
