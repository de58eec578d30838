"""Timestamps as text (RFC 3339) and back."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(unix_ms: int) -> str:
    """Milliseconds since 1970 as ``2026-11-20T10:00:00.123Z``."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
