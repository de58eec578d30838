"""What a process needs, as last found: behind ``/readyz?verbose`` of every role."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from shared.clock import Clock
from shared.timestamps import rfc3339

if TYPE_CHECKING:
    from shared.telemetry import Telemetry

LOOK_EVERY = 2.0
"""Seconds between two looks of a process at what it needs, whether anybody asks or not."""

logger = logging.getLogger(__name__)


class Check(msgspec.Struct):
    """One thing a process needs."""

    ok: bool
    detail: str
    """What was found; where it is not ok, what was tried."""
    since: str
    """When it was first found so."""


class Checks:
    """All of them, by name: ``log``, ``store``, ``registry``, … Says in the process's log what becomes amiss, and when
    it is well again, for how long it was not."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: dict[str, Check] = {}
        self._found_at: dict[str, float] = {}
        """The times of ``since`` on the monotonic clock."""
        self._was_well = False
        """Whether all was well once; what a process lacks before it has come up is no news."""

    @property
    def found(self) -> Mapping[str, Check]:
        """As last set."""
        return self._found

    @property
    def all_ok(self) -> bool:
        """Whether nothing is amiss."""
        return all(check.ok for check in self._found.values())

    def looked(self, telemetry: Telemetry | None = None) -> None:
        """The end of a look: what was found is shown, and from the first one on at which all is well, changes are
        said."""
        self._was_well = self._was_well or self.all_ok
        if telemetry is not None:
            telemetry.checks({name: check.ok for name, check in self._found.items()})

    def is_ok(self, name: str) -> bool:
        """Whether this was looked at and found right."""
        check = self._found.get(name)
        return check is not None and check.ok

    def set(self, name: str, *, trouble: str, fine: str) -> None:
        """What was found just now: ``trouble``, or else that all is ``fine``."""
        ok, detail = not trouble, trouble or fine
        before = self._found.get(name)
        if before is not None and before.ok == ok:
            before.detail = detail
            return
        now = self._clock.monotonic()
        if self._was_well and not ok:
            logger.warning("%s: %s", name, detail)
        elif self._was_well and before is not None:
            logger.info("%s: %s again, after %.1f s", name, detail, now - self._found_at[name])
        self._found[name] = Check(ok, detail, rfc3339(self._clock.unix_ms()))
        self._found_at[name] = now


async def keep_looking(look: Callable[[], Awaitable[object]]) -> None:
    """Look all the time, until cancelled: so what is told is no older than it says, and what comes and goes between two
    probes is found too."""
    while True:
        try:
            await look()
        except Exception:  # a look that fails must not end what it looks at
            logger.exception("the process could not look at what it needs")
        await asyncio.sleep(LOOK_EVERY)
