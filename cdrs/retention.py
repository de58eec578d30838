"""Retention: what has expired is deleted from the store, and what a log need not keep from the log, by one node as a
rule.

Deleting is safe for any number of nodes at once (`ExpiringStore.expire`, `TrimmableLog.trim`), so who does it is a hint
like everything else: the node that comes first for partition 0.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from shared.clock import Clock
from shared.errors import Unavailable
from shared.offers import ExpiringStore, TrimmableLog
from shared.ports import EventStore
from shared.records import Expiry
from shared.settings import RetentionSettings

logger = logging.getLogger(__name__)

BREATH = 0.01
"""Seconds between two pieces: appends come first."""
TRIM_STEP = 1000
"""Records of a partition for which it is worth while to ask a log to let go of them; a quarter of the window where that
is less."""


class Retention:
    """Looks for what has expired, again and again."""

    def __init__(
        self,
        store: ExpiringStore,
        settings: RetentionSettings,
        clock: Clock,
        *,
        preferred: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._preferred = preferred
        self._ahead_ms = clock.unix_ms() - clock.monotonic() * 1000

    async def run(self) -> None:
        """Delete until cancelled."""
        while True:
            more = self._preferred(0) and await self._store.expire(self._expiry())
            await asyncio.sleep(BREATH if more else self._settings.interval)

    def _expiry(self) -> Expiry:
        settings, now = self._settings, self._now_ms()
        return Expiry(
            now_ms=now,
            before_ms=now - int(settings.max_age * 1000) if settings.max_age else 0,
            max_bytes=settings.max_bytes,
            until_ms=now + int(settings.identities * 1000),
        )

    def _now_ms(self) -> int:
        """The wall clock, unless it has jumped ahead since the start: deleting too late can be made good."""
        return min(self._clock.unix_ms(), int(self._ahead_ms + self._clock.monotonic() * 1000))


def trimmed_to(*, floor: int, checkpoint: int, window: int, keep: int) -> int:
    """First offset of a partition that its log must keep: nothing that the store lacks, nor the window below it, from
    which a node that starts judges what follows; else nothing that the store has deleted, nor, with ``keep``, more than
    about so many records that it has. Pure."""
    wanted = max(floor, checkpoint - keep) if keep else floor
    return max(min(wanted, checkpoint - window), 0)


class Trimming:
    """Looks for what the log need not keep, again and again. Readers do not notice: history is the store's."""

    def __init__(
        self,
        log: TrimmableLog,
        store: EventStore,
        settings: RetentionSettings,
        *,
        window: int,
        preferred: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self._log = log
        self._store = store
        self._settings = settings
        self._window = window
        self._step = min(TRIM_STEP, window // 4)
        self._preferred = preferred
        self._trimmed: Mapping[int, int] = {}

    async def run(self) -> None:
        """Trim until cancelled. What cannot be trimmed now is no harm: it is tried again with the next look."""
        trouble = ""
        while True:
            try:
                if self._preferred(0):
                    await self._trim()
                trouble = ""
            except Unavailable as error:
                if str(error) != trouble:
                    logger.warning("the log cannot be trimmed: %s", error)
                trouble = str(error)
            await asyncio.sleep(self._settings.interval)

    async def _trim(self) -> None:
        # Neither goes back: what is true of them now stays true.
        floors, checkpoints = await self._store.starts(), await self._store.checkpoints()
        below = {
            partition: trimmed_to(
                floor=floors.get(partition, 0),
                checkpoint=checkpoint,
                window=self._window,
                keep=self._settings.topic_records,
            )
            for partition, checkpoint in checkpoints.items()
        }
        done = self._trimmed
        worth = {partition: stop for partition, stop in below.items() if stop - done.get(partition, 0) >= self._step}
        if worth:
            await self._log.trim(worth)
            self._trimmed = {**done, **worth}
