"""A folder with the embedded log, for tests of its files."""

from __future__ import annotations

from pathlib import Path

from log_process import PARTITIONS
from new_events import events

from shared.backends.embedded.log import open_log
from shared.clock import SystemClock
from shared.settings import LogSettings

QUICK = LogSettings(partitions=PARTITIONS, append_timeout=0.3)
CLOCK = SystemClock()


def opened(folder: Path, settings: LogSettings = QUICK, clock: SystemClock = CLOCK):
    return open_log(folder, settings, clock)


async def fill(folder: Path) -> None:
    """A log of 300 events."""
    async with opened(folder) as (log, _):
        for first in range(0, 300, 20):
            await log.append(first // 20 % PARTITIONS, events(first, first + 20), base=0)
