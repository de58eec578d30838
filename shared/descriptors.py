"""How many connections a process can hold: each is a descriptor, and it must not run out of them.

Where they do run out, the kernel refuses whoever happens to be next: a new client without a word, or a file of our own.
So newer clients are sent away, in words that they understand, before that.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from typing import NamedTuple


class Room(NamedTuple):
    """Numbers of connections. Each is larger than the one before."""

    streams: int
    """So many may be event streams."""
    served: int
    """Beyond it a connection is served one request, and no stream."""
    most: int
    """Beyond it a connection is closed at once: the rest is for files, and for links to other processes."""


def raise_limit() -> None:
    """As many descriptors as an unprivileged process may have: the soft limit is a relic of ``select``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_descriptors() -> int:
    """How many this process has open. Linux tells by the size of the folder since 6.2 (before, and elsewhere, it is 0);
    with 20,000 of them to list it takes 20 ms."""
    folder = "/proc/self/fd"
    return os.stat(folder).st_size or len(os.listdir(folder))  # noqa: PTH116, PTH208


def room() -> Room:
    """What there is room for, with the limit as it is now."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        limit = 1 << 20
    most = max(limit - 64 - min(limit // 50, 192), 8)
    return Room(most - most // 16, most - most // 32, most)
