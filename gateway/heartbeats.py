"""What keeps a quiet stream alive: where it stands, told again and again. And the end of those that are old enough."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container
from typing import TYPE_CHECKING

from gateway.subscriber import FRAMED, Subscriber
from gateway.views import http_chunk
from gateway.wheel import SPOKES, Wheel
from shared.clock import Clock
from shared.sse import cursor_block

if TYPE_CHECKING:
    from gateway.publishing import Publisher

SLICE = 64
"""Streams visited before the loop gets a turn."""

_Blocks = dict[int, tuple[bytes, bytes, bytes]]
"""Partition or -1 for the vector → cursor, cursor block, and that as a chunk."""


class Heartbeats:
    """Visits each open stream when it has been silent for ``interval`` seconds. Those that got something meanwhile are
    not moved for that: they are found where they were, and parked for as long as is left."""

    def __init__(
        self,
        interval: float,
        clock: Clock,
        publisher: Publisher,
        opened: Container[Subscriber],
        say_bye: Callable[[Subscriber, str], None],
    ) -> None:
        """``opened``: the streams that are; ``say_bye`` ends one for a reason."""
        self._interval = interval
        self._clock = clock
        self._publisher = publisher
        self._opened = opened
        self._say_bye = say_bye
        self._wheel = Wheel()

    def begin(self, subscriber: Subscriber) -> None:
        """A stream has been opened."""
        self._wheel.park(subscriber, SPOKES)

    def end(self, subscriber: Subscriber) -> None:
        """It has ended."""
        self._wheel.remove(subscriber)

    async def run(self) -> None:
        """Go round until cancelled."""
        tick = self._interval / SPOKES
        while True:
            await asyncio.sleep(tick)
            blocks: _Blocks = {}
            for count, subscriber in enumerate(self._wheel.turn(), 1):
                if subscriber in self._opened:  # else it has ended since this turn began
                    self._visit(subscriber, tick, blocks)
                if count % SLICE == 0:
                    blocks.clear()
                    await asyncio.sleep(0)

    def _visit(self, subscriber: Subscriber, tick: float, blocks: _Blocks) -> None:
        now = self._clock.monotonic()
        if now >= subscriber.expires:
            self._say_bye(subscriber, "rotate")
            return
        wait = self._interval - (now - subscriber.wrote)
        if wait > tick / 2:
            self._wheel.park(subscriber, round(wait / tick))
            return
        self._wheel.park(subscriber, SPOKES)
        view = subscriber.view
        if view is None or not subscriber.live or not subscriber.ready or subscriber.seq != view.end:
            return
        if self._publisher.owes(view):  # it has more to come than that
            return
        where = -1 if view.selection.vector else view.selection.partitions[0]
        known = blocks.get(where)
        if known is None:
            cursor = self._publisher.cursor_now(view.selection)
            known = blocks[where] = (cursor, cursor_block(cursor), http_chunk(cursor_block(cursor)))
        subscriber.cursor, block, chunk = known
        subscriber.wrote = now
        if subscriber.gzip is not None:
            block = subscriber.coded(block)
            chunk = http_chunk(block)
        subscriber.write(chunk if subscriber.form & FRAMED else block)
