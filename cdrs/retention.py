"""Retention: what has expired is deleted from the store, by one node as a rule.

Deleting is safe for any number of nodes at once (`ExpiringStore.expire`), so who does it is a hint like everything
else: the node that comes first for partition 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shared.clock import Clock
from shared.offers import ExpiringStore
from shared.records import Expiry
from shared.settings import RetentionSettings

BREATH = 0.01
"""Seconds between two pieces: appends come first."""


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
