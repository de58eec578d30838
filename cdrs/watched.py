"""A store that may be away: asked no more once it did not answer, until it answers again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from cdrs.tasks import Wakeup
from shared.errors import Unavailable
from shared.ports import EventStore
from shared.records import Duplicate, FeedBatch, HistoryPage, NewEvent, PageQuery, Record, StreamInfo
from shared.telemetry import Telemetry

LOOK_EVERY = 1.0
"""Seconds between two looks at a store that answers."""
LOOK_AGAIN = 0.25
"""And at one that does not."""
MOMENT = 0.1
"""What a store that is away may take to answer out of its own memory, in seconds."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class WatchedStore:
    """`EventStore`, in front of another. A store that is away costs one call its deadline; the others are refused at
    once (`Unavailable`), so nothing of the node waits behind it. What `run` finds out brings it back.

    What it once said of checkpoints and floors holds meanwhile, as neither goes back.
    """

    def __init__(self, store: EventStore, telemetry: Telemetry | None = None) -> None:
        self.trouble = ""
        """Why the store did not answer when it was last asked; empty where it did."""
        self.known_checkpoints: Mapping[int, int] = {}
        """`checkpoints`, as last seen: what is below is in the store. Empty before the first look."""
        self._starts: Mapping[int, int] | None = None
        self._store = store
        self._telemetry = telemetry
        self._wakeup = Wakeup()

    async def run(self) -> None:
        """Look whether the store answers, until cancelled."""
        while True:
            try:
                self.known_checkpoints = dict(await self._store.checkpoints())
                self._starts = await self._store.starts()
            except Unavailable as error:
                self._lost(error)
                await self._wakeup.wait(LOOK_AGAIN)
            else:
                self._found()
                await self._wakeup.wait(LOOK_EVERY)

    @property
    def is_log(self) -> bool:
        """See `EventStore`."""
        return self._store.is_log

    async def _ask(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except Unavailable as error:
            # Its subclasses are answers, not silence.
            if type(error) is Unavailable:
                self._lost(error)
            raise

    def _check(self) -> None:
        if self.trouble:
            raise Unavailable(self.trouble, retry_after=1.0)

    def _lost(self, error: Unavailable) -> None:
        trouble = error.detail or error.title
        if not self.trouble:
            logger.warning("the store is away: %s", trouble)
            self._tell(degraded=True)
            self._wakeup.set()
        self.trouble = trouble

    def _found(self) -> None:
        if self.trouble:
            logger.info("the store is back")
            self._tell(degraded=False)
        self.trouble = ""

    def _tell(self, *, degraded: bool) -> None:
        if self._telemetry is not None:
            self._telemetry.dedupe_degraded(degraded)

    async def checkpoints(self) -> Mapping[int, int]:
        """See `EventStore`."""
        self._check()
        found = await self._ask(self._store.checkpoints())
        self.known_checkpoints = dict(found)
        return found

    async def starts(self) -> Mapping[int, int]:
        """See `EventStore`; while the store is away, what it said last."""
        if self.trouble and self._starts is not None:
            return self._starts
        self._check()
        return await self._ask(self._store.starts())

    async def page(self, query: PageQuery) -> HistoryPage:
        """See `EventStore`."""
        self._check()
        return await self._ask(self._store.page(query))

    async def find(self, stream: str, event_id: str, source: str | None) -> Sequence[Record]:
        """See `EventStore`."""
        self._check()
        return await self._ask(self._store.find(stream, event_id, source))

    async def offset_at(self, append_ms: int) -> Mapping[int, int]:
        """See `EventStore`."""
        self._check()
        return await self._ask(self._store.offset_at(append_ms))

    async def append_time(self, partition: int, offset: int) -> int | None:
        """See `EventStore`."""
        self._check()
        return await self._ask(self._store.append_time(partition, offset))

    async def streams(self, *, after: str, limit: int) -> Sequence[StreamInfo]:
        """See `EventStore`."""
        self._check()
        return await self._ask(self._store.streams(after=after, limit=limit))

    async def stream(self, name: str) -> StreamInfo | None:
        """See `EventStore`."""
        self._check()
        return await self._ask(self._store.stream(name))

    async def create_stream(self, name: str, *, spread: int) -> StreamInfo:
        """See `EventStore`."""
        self._check()
        return await self._ask(self._store.create_stream(name, spread=spread))

    async def persist(self, *batches: FeedBatch) -> None:
        """See `EventStore`."""
        self._check()
        await self._ask(self._store.persist(*batches))

    async def give_up(self, partition: int, start: int, stop: int) -> None:
        """See `EventStore`."""
        self._check()
        await self._ask(self._store.give_up(partition, start, stop))

    async def lookup(self, partition: int, events: Sequence[NewEvent]) -> Mapping[bytes, Duplicate]:
        """See `EventStore`."""
        self._check()
        return await self._ask(self._store.lookup(partition, events))

    async def admit(self, spreads: Mapping[str, int]) -> None:
        """See `EventStore`. Always asked: streams that were seen before need no answer of a server."""
        if not self.trouble:
            await self._ask(self._store.admit(spreads))
            return
        try:
            async with asyncio.timeout(MOMENT):
                await self._store.admit(spreads)
        except TimeoutError:
            raise Unavailable(self.trouble, retry_after=1.0) from None
