"""What goes wrong here is told to a person in one line."""

from __future__ import annotations


class EngineError(Exception):
    """Something a person must know or do; the message says what."""
