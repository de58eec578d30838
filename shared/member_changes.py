"""Changes of the membership picture, and how one reader follows them."""

from __future__ import annotations

import asyncio
from typing import Self

import msgspec

from shared.detector import NodeState

MAX_CHANGES = 4096
"""Changes kept for one subscriber; beyond it they become one ``reset``."""


class Change(msgspec.Struct, frozen=True):
    """Something happened to the picture."""

    kind: str
    """join, load, suspect, dead, drain or leave; registry: it became ok or stale (no key); reset: changes were
    dropped because the subscriber was too slow, read the whole picture (no key)."""
    key: str


class Subscription:
    """Changes for one reader, coalesced: at most one entry for each kind and key, in order of the latest. Never holds
    more than `MAX_CHANGES`. Ends with the context, by `close`, or when it is let go."""

    def __init__(self, *, loads: bool) -> None:
        self.loads = loads
        self._changes: dict[Change, None] = {}
        self._woken = asyncio.Event()
        self._is_closed = False

    def put(self, change: Change) -> None:
        """Add a change and wake the reader."""
        if self._is_closed:
            return
        self._changes.pop(change, None)
        if len(self._changes) >= MAX_CHANGES:
            self._changes.clear()
            change = Change("reset", "")
        self._changes[change] = None
        self._woken.set()

    async def changes(self, timeout: float) -> list[Change]:
        """What happened since the last call; waits up to ``timeout`` seconds for something, empty if nothing did."""
        if not self._changes:
            await self.wait(timeout)
        changes = list(self._changes)
        self._changes.clear()
        self._woken.clear()
        return changes

    async def wait(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds until something happens; at once where it has since the last call."""
        if not self._woken.is_set():
            try:
                async with asyncio.timeout(timeout):
                    await self._woken.wait()
            except TimeoutError:
                return
        self._woken.clear()

    def close(self) -> None:
        """Take no more changes. Idempotent."""
        self._is_closed = True
        self._changes.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def kind_of(before: NodeState | None, state: NodeState) -> str:
    """What it is called that a process is in this state and was in that one (None: it was not known)."""
    if before is None:
        return "join"
    if state is NodeState.SUSPECT:
        return "suspect"
    if state is NodeState.DEAD:
        return "dead"
    if state is NodeState.DRAINING:
        return "drain"
    return "join" if before is NodeState.DEAD else "load"
