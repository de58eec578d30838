"""What any process needs of its machine, looked at all the time: turns of its loop, descriptors, room on its disk.

Behind ``/readyz?verbose`` of every role. What is amiss here does not take a process out of service: it degrades, and
says so before it fails.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from collections import deque
from collections.abc import Callable
from pathlib import Path

from shared.clock import Clock, to_tick
from shared.descriptors import open_descriptors, room
from shared.health import Checks
from shared.telemetry import Telemetry

TICK = 0.25
"""Seconds between two looks at the event loop."""
LONG_TURN = 1.0
"""Seconds that the event loop may be late before the process counts as stalled: three beats are missed then."""
REMEMBERED = 15.0
"""Seconds for which the worst delay is shown; as long as scrapes are apart, so that none is missed."""
SLOW_INTERVAL = 5.0
"""Seconds between two looks at descriptors and disk."""
LITTLE_ROOM = 64 * 1024 * 1024
"""Bytes; with less on its disk the log is about to refuse appends."""

logger = logging.getLogger(__name__)


class Vitals:
    """One process, as it finds itself. `run` looks, the rest tells."""

    def __init__(
        self,
        clock: Clock,
        *,
        folder: Path | None = None,
        free: Callable[[Path], int] = lambda folder: os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize,
        descriptors: Callable[[], int] = open_descriptors,
    ) -> None:
        """``folder``: where the process keeps data, if it does. ``free`` and ``descriptors`` measure, in bytes and in
        numbers."""
        self._clock = clock
        self._folder = folder
        self._free = free
        self._descriptors = descriptors
        self._delays: deque[tuple[float, float]] = deque()
        """(when, seconds late), of which each is later and smaller than the one before: the first is the worst."""
        self.open = 0
        """Descriptors in use."""
        self.room: int | None = None
        """Bytes free on the disk; None: not known, or nothing is kept."""

    async def run(self) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look_around())
            await self._watch_loop()

    async def _watch_loop(self) -> None:
        while True:
            now = self._clock.monotonic()
            pause = to_tick(TICK, self._clock)
            await asyncio.sleep(pause)
            self.late(self._clock.monotonic() - now - pause)

    def late(self, seconds: float) -> None:
        """The event loop came so much later than it was asked to."""
        if seconds > LONG_TURN:
            logger.warning("the event loop stood still for %.1f s", seconds)
        delays = self._delays
        while delays and delays[-1][1] <= seconds:
            delays.pop()
        delays.append((self._clock.monotonic(), max(seconds, 0.0)))

    @property
    def delay(self) -> float:
        """The longest that the event loop was late of late, in seconds."""
        oldest = self._clock.monotonic() - REMEMBERED
        while self._delays and self._delays[0][0] < oldest:
            self._delays.popleft()
        return self._delays[0][1] if self._delays else 0.0

    async def _look_around(self) -> None:
        while True:
            # In a thread: a disk may be slow to answer.
            await asyncio.to_thread(self.look)
            await asyncio.sleep(SLOW_INTERVAL)

    def look(self) -> None:
        """Look at descriptors and disk, once."""
        try:
            self.open = self._descriptors()
        except OSError:  # to list them takes one, too
            self.open = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if self._folder is not None:
            try:
                self.room = self._free(self._folder)
            except OSError as error:
                logger.warning("the free space of the data folder cannot be read: %s", error)
                self.room = None

    def tell(self, checks: Checks) -> None:
        """Set the checks ``loop``, ``descriptors`` and, where data is kept, ``disk``."""
        said = f"at most {self.delay * 1000:.0f} ms late within {REMEMBERED:.0f} s"
        checks.set("loop", trouble=said if self.delay > LONG_TURN else "", fine=said)
        limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)[0], room().streams
        said = f"{self.open} open, event streams are refused from {most} on, the limit is {limit}"
        checks.set("descriptors", trouble=said if self.open >= most else "", fine=said)
        if self._folder is not None and self.room is not None:
            said = f"{self.room >> 20} MiB free"
            checks.set("disk", trouble=f"{said}; appends will be refused" if self.room < LITTLE_ROOM else "", fine=said)

    def export(self, telemetry: Telemetry) -> None:
        """The same as metrics; called before each scrape."""
        telemetry.loop_delay(self.delay)
        if self.room is not None:
            telemetry.disk_free(self.room)
