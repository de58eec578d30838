"""A CDRS node: the log's and the store's face to the gateways. Keeps nothing that it could not read again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

import msgspec

from cdrs.dead_letters import WRITE_TIMEOUT, DeadLetters
from cdrs.feed import FeedCursor
from cdrs.history import HistoryReader
from cdrs.ingest import Ingest
from cdrs.persist import Persister
from cdrs.replicas import replicas_trouble
from cdrs.retention import Retention, Trimming
from cdrs.strain import Strain
from cdrs.tasks import Supervisor
from cdrs.watched import WatchedStore
from shared.clock import Clock, to_tick
from shared.direct import HandedOver
from shared.errors import InvalidRequest, ServerError, StaleEpoch, Unavailable
from shared.membership import Load
from shared.offers import ExpiringStore, Replicas, ReplicatedLog, SuccessorLog, TrimmableLog
from shared.ports import EventLog, EventStore, ForeignSource, LeaderSource
from shared.position import Epoch
from shared.records import HistoryPage, NewEvent, NodeInfo, PageQuery, Record, Settlement, StreamInfo
from shared.settings import Settings
from shared.telemetry import Telemetry

MEASURE_INTERVAL = 1.0
MAX_FEEDS = 256
NOT_ASKED = "not asked yet"

logger = logging.getLogger(__name__)


class Node:
    """Ingest, tail, feeds and history over one log and its store. Implements `shared.ports.NodeLink` for gateways in
    the same process; `cdrs.api` serves the same over HTTP.

    Any node may serve any partition at any time: correctness rests on the log alone.
    """

    def __init__(
        self,
        log: EventLog,
        store: EventStore,
        settings: Settings,
        clock: Clock,
        *,
        node_id: str,
        incarnation: str,
        telemetry: Telemetry | None = None,
        preferred: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """``preferred`` tells whether this node comes first in the ranking for a partition, and so carries it into the
        store where that is not the log itself."""
        self._log = log
        self._watched = None if store.is_log else WatchedStore(store, telemetry)
        self._store: EventStore = self._watched or store
        self._clock = clock
        self._telemetry = telemetry
        self._info = NodeInfo(
            node_id,
            incarnation,
            log.epoch,
            log.partitions,
            former=list(log.former) if isinstance(log, SuccessorLog) else [],
        )
        self._supervisor = Supervisor(clock, telemetry)
        self._ingest = Ingest(
            log,
            self._store,
            settings.node,
            clock,
            telemetry=telemetry,
            strict=settings.dedupe.strict,
            supervisor=self._supervisor,
        )
        self._tail = self._ingest.tail
        self._history = HistoryReader(log, self._store, self._tail)
        self._persister: Persister | None = None
        if not store.is_log:
            self._persister = Persister(
                log,
                store,
                self._tail,
                settings.persist,
                clock,
                window=settings.node.window,
                preferred=preferred,
                supervisor=self._supervisor,
            )
            self._ingest.refuses = self._persister.refuses
        self._letters = DeadLetters(
            log.epoch,
            log.partitions,
            partial(self._ingest.append, timeout=WRITE_TIMEOUT),
            clock,
            rate=settings.node.dead_letters,
            preferred=preferred,
            telemetry=telemetry,
        )
        self._retention: Retention | None = None
        if settings.retention.is_on and isinstance(store, ExpiringStore):
            self._retention = Retention(store, settings.retention, clock, preferred=preferred)
        self._trimming: Trimming | None = None
        if settings.retention.trims and isinstance(log, TrimmableLog) and not store.is_log:
            window = settings.node.window
            self._trimming = Trimming(log, store, settings.retention, window=window, preferred=preferred)
        self._strain = Strain(window=settings.node.window)
        self._feeds: set[FeedCursor] = set()
        self._is_closed = False
        self._log_trouble = NOT_ASKED

    async def run(self) -> None:
        """Tail the log and store what is handed over, until cancelled."""
        deaf = self._log.on_foreign(self._letters.take) if isinstance(self._log, ForeignSource) else None
        supervise = self._supervisor.run
        try:
            async with asyncio.TaskGroup() as group:
                if deaf is not None:
                    group.create_task(supervise("dead letters", self._letters.run))
                group.create_task(supervise("tail", self._tail.run))
                group.create_task(supervise("measure", self._measure))
                group.create_task(self._ingest.run())
                if self._retention is not None:
                    group.create_task(supervise("retention", self._retention.run))
                if self._trimming is not None:
                    group.create_task(supervise("trimming", self._trimming.run))
                if self._persister is not None:
                    group.create_task(self._persister.run())
                if self._watched is not None:
                    group.create_task(supervise("log reader", self._history.log_reader.run))
                    group.create_task(supervise("store", self._watched.run))
        finally:
            if deaf is not None:
                deaf()
            self.stop()

    async def ready(self, timeout: float) -> bool:
        """Wait until the node can serve, at most ``timeout`` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._tail.caught_up.wait()
        return self._tail.ready

    @property
    def is_ready(self) -> bool:
        """Whether the node has reached its log and takes handoffs."""
        return self._tail.ready and not self._ingest.draining

    @property
    def is_caught_up(self) -> bool:
        """Whether the node has read what the log held when it began."""
        return self._tail.ready

    @property
    def needs(self) -> Mapping[str, str]:
        """``log``, and ``store`` where that is another thing → why it did not answer when last asked (each second);
        empty where it did."""
        found = {"log": self._log_trouble}
        return found if self._watched is None else {**found, "store": self._watched.trouble}

    @property
    def lag(self) -> Mapping[int, int]:
        """Per partition how many records the log holds beyond what was read, when last asked."""
        return self._tail.lag

    @property
    def is_draining(self) -> bool:
        """Whether new handoffs are refused for good."""
        return self._ingest.draining

    @property
    def troubles(self) -> Mapping[str, str]:
        """What the node lacks although it serves: name → what was found."""
        found: dict[str, str] = {}
        if self._watched is not None and self._watched.trouble:
            found["dedupe"] = f"copies are looked for in memory alone: {self._watched.trouble}"
        if trouble := self._supervisor.trouble:
            found["tasks"] = trouble
        if self._persister is not None and (trouble := self._persister.trouble):
            found["persist"] = trouble
        if trouble := replicas_trouble(self._replicas):
            found["replicas"] = trouble
        if self._tail.broken:
            found["partitions"] = "; ".join(self._tail.broken.values())
        strained = [partition for partition in self.strained if partition not in self._tail.broken]
        if strained:
            found["strain"] = f"partitions {', '.join(map(str, strained))} are read or stored too slowly"
        return found

    @property
    def strained(self) -> list[int]:
        """Partitions for which gateways should ask other nodes first: this one's tail stands still or is far behind,
        its queues have been full for long, or its log does not answer it."""
        return self._strain.partitions(range(self._log.partitions), self._tail.broken)

    def load(self) -> Load:
        """What the heartbeat tells of this node."""
        return Load(
            in_flight=self._ingest.in_flight,
            ewma_ms=round(self._ingest.ewma_ms, 3),
            lag_records=sum(self._tail.lag.values()),
            connections=len(self._feeds),
            partitions=len(self._tail.rings),
        )

    async def drain(self, timeout: float) -> None:
        """Refuse new handoffs with `Unavailable`, finish those in flight within ``timeout`` seconds. Feeds go on."""
        await self._ingest.drain(timeout)

    def stop(self) -> None:
        """End all feeds: their readers see `LinkBroken`. Later feeds are refused."""
        self._is_closed = True
        for feed in self._feeds:
            feed.stop()

    async def close(self) -> None:
        """`NodeLink.close`: a gateway lets go of its link; the node lives on."""

    async def append(
        self, epoch: Epoch, partition: int, events: Sequence[NewEvent], *, timeout: float
    ) -> Sequence[Settlement]:
        """`Handoff.append`. Events once accepted are stored even if the caller is cancelled."""
        return await self._ingest.append(epoch, partition, events, timeout=timeout)

    @property
    def commits_together(self) -> bool:
        """`DirectHandoff.commits_together`."""
        return self._ingest.commits_together

    def hand_over(self, epoch: Epoch, handoffs: Sequence[HandedOver], *, timeout: float) -> None:
        """`DirectHandoff.hand_over`."""
        self._ingest.hand_over(epoch, handoffs, timeout=timeout)

    @asynccontextmanager
    async def feed(self, epoch: Epoch, positions: Mapping[int, int]) -> AsyncGenerator[FeedCursor]:
        """`Feed.feed`."""
        if epoch != self._log.epoch:
            raise StaleEpoch(f"this node's log is {self._log.epoch}")
        if not positions or any(not 0 <= p < self._log.partitions or o < 0 for p, o in positions.items()):
            raise InvalidRequest("no such partitions")
        if self._is_closed or len(self._feeds) >= MAX_FEEDS:
            raise Unavailable("the node takes no more feeds")
        cursor = FeedCursor(self._tail, self._history, self._clock, positions)
        self._feeds.add(cursor)
        cursor.open()
        try:
            yield cursor
        finally:
            self._feeds.discard(cursor)
            await cursor.close()

    async def info(self) -> NodeInfo:
        """`History.info`."""
        return msgspec.structs.replace(self._info, troubles=dict(self.troubles), strained=self.strained)

    async def ends(self) -> Mapping[int, int]:
        """`History.ends`."""
        ends = await self._log.ends()
        # A log that is too short must not make cursors that were right look as if they were of the future.
        return {partition: max(end, self._tail.known_ends.get(partition, 0)) for partition, end in ends.items()}

    async def starts(self) -> Mapping[int, int]:
        """`History.starts`."""
        # What the log keeps no more, a store of its own still has.
        return await (self._log if self._store.is_log else self._store).starts()

    async def page(self, query: PageQuery) -> HistoryPage:
        """`History.page`."""
        return await self._history.page(query)

    async def find(self, stream: str, event_id: str, source: str | None) -> Sequence[Record]:
        """`History.find`."""
        return await self._history.find(stream, event_id, source)

    async def offset_at(self, append_ms: int) -> Mapping[int, int]:
        """`History.offset_at`."""
        return await self._history.offset_at(append_ms)

    async def append_time(self, partition: int, offset: int) -> int | None:
        """`History.append_time`."""
        return await self._history.append_time(partition, offset)

    async def streams(self, *, after: str, limit: int) -> Sequence[StreamInfo]:
        """`History.streams`."""
        return await self._store.streams(after=after, limit=limit)

    async def stream(self, name: str) -> StreamInfo | None:
        """`History.stream`."""
        return await self._store.stream(name)

    async def create_stream(self, name: str, *, spread: int) -> StreamInfo:
        """`History.create_stream`."""
        return await self._store.create_stream(name, spread=spread)

    async def _measure(self) -> None:
        while True:
            await self._look_at_log()
            if self._telemetry is not None:
                self._export(self._telemetry)
            await asyncio.sleep(to_tick(MEASURE_INTERVAL, self._clock))

    async def _look_at_log(self) -> None:
        try:
            await self._tail.measure()
            trouble = ""
            self._strain.look({partition: self._tail.position(partition) for partition in self._tail.rings}, self.lag)
        except ServerError as error:
            trouble = error.detail or error.title
            self._strain.silence()
        self._strain.fill(self._ingest.fullness)
        self._log_trouble = trouble

    @property
    def _replicas(self) -> Mapping[int, Replicas]:
        return self._log.replicas() if isinstance(self._log, ReplicatedLog) else {}

    def _export(self, telemetry: Telemetry) -> None:
        telemetry.consumer_lag(self._tail.lag)
        if self._persister is not None:
            telemetry.persist_lag(self._persister.lag)
        if isinstance(self._log, LeaderSource):
            telemetry.partition_leaders(self._log.leaders())
        if self._replicas:
            telemetry.in_sync(min(len(each.in_sync) for each in self._replicas.values()))
