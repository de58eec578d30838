"""What a client sends ahead of its answers: how much of it is parsed at once, and what may wait as it came.

A request that was parsed takes a hundred times its bytes, so most of what cannot be answered yet stays unparsed. One
read brings at most 250 KiB (256 KiB on asyncio's own loop), and none follows while something waits.
"""

from __future__ import annotations

import re

MOST = 248 * 1024
"""Bytes kept for one connection of what came behind the request that is being answered, parsed or not; with that one it
is 256 KiB."""
PARSED = 32 * 1024
"""Of that, bytes of requests that are parsed: more are no sooner answered."""
UNREAD = 32 * 1024
"""Bytes kept of what a client sends ahead that does not take an answer written in pieces. Who sends more is cut."""
PIECES = (256, 2048, 16384)
"""Bytes that are parsed between two looks at how much has come together: as many of these as fit."""
REQUEST = 2560
"""What a parsed request takes, without its header fields."""
FIELD = 144
"""What a header field takes beyond its text."""
OF_BODY = 64
"""Bytes of a body that are parsed at a time where little fits: three whole requests may hide behind its end."""

_BLANK = re.compile(rb"[\r\n]+")


def cost(data: bytes, start: int, stop: int) -> int:
    """Bytes that a piece takes once it is parsed, at most: every line may be a field, every empty one end a head."""
    heads = data.count(b"\r\n\r\n", start, stop) + 1  # one of them may have begun before
    return stop - start + FIELD * data.count(b"\r\n", start, stop) + REQUEST * heads


def piece(data: bytes, start: int, parsed: int) -> tuple[int, int]:
    """Where the next piece ends (at its start: nothing fits) on top of what is parsed, and how much that is then."""
    end, total = start, parsed
    for size in PIECES:
        stop = min(start + size, len(data))
        taken = parsed + cost(data, start, stop)
        if taken > PARSED or taken + len(data) - stop > MOST:
            break
        end, total = stop, taken
        if stop == len(data):
            break
    return end, total


def end_of_one(data: bytes, start: int, *, in_head: bool, in_body: bool) -> int:
    """Where a piece ends that is due though nothing fits: one with the end of one request's head in it, if of any."""
    stop = min(start + PIECES[-1], len(data))
    if in_body:
        return min(start + OF_BODY, stop)
    blank = None if in_head else _BLANK.match(data, start)
    if blank is not None:
        return blank.end()
    end = data.find(b"\r\n\r\n", max(start - 3, 0), stop)
    return stop if end < 0 else end + 4
