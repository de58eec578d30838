"""Times as clients write them: RFC 3339 and durations. Pure functions; the way back is `shared.timestamps`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?(?:([Zz])|([+-])(\d{2}):(\d{2}))", re.ASCII
)
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_rfc3339(text: str) -> int:
    """Milliseconds since 1970 (fractions of one are dropped, a leap second counts as the one before).
    Raises ``ValueError``."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError("not an RFC 3339 time")
    day, clock, fraction, _, sign, hours, minutes = match.groups()
    if clock.endswith(":60"):
        clock = clock[:-2] + "59"
    moment = datetime.fromisoformat(f"{day}T{clock}+00:00")
    ms = int((moment - _EPOCH) // timedelta(milliseconds=1)) + int((fraction or "0").ljust(3, "0")[:3])
    if sign is None:
        return ms
    if int(hours) > 23 or int(minutes) > 59:
        raise ValueError("not an offset from UTC")
    offset = (int(hours) * 60 + int(minutes)) * 60_000
    return ms - offset if sign == "+" else ms + offset


def parse_duration(text: str) -> int:
    """``90s``, ``5m``, ``2h`` or ``7d`` in milliseconds. Raises ``ValueError``."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("not a duration")
    return int(match[1]) * _UNIT_MS[match[2]]
