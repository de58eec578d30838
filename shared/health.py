"""What a process needs, as last found: behind ``/readyz?verbose`` of every role."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from shared.clock import Clock
from shared.timestamps import rfc3339


class Check(msgspec.Struct):
    """One thing a process needs."""

    ok: bool
    detail: str
    """What was found; where it is not ok, what was tried."""
    since: str
    """When it was first found so."""


class Checks:
    """All of them, by name: ``log``, ``store``, ``registry``, …"""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: dict[str, Check] = {}

    @property
    def found(self) -> Mapping[str, Check]:
        """As last set."""
        return self._found

    @property
    def all_ok(self) -> bool:
        """Whether nothing is amiss."""
        return all(check.ok for check in self._found.values())

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
        else:
            self._found[name] = Check(ok, detail, rfc3339(self._clock.unix_ms()))
