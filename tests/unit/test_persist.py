"""Carrying the log into the store: whose turn it is, how batches are cut, what is read again, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from model_log import ModelLog, ModelStore, event, events
from node_world import running, until

from cdrs.persist import Persister, Replay, Turn, pieces, together
from cdrs.tail import Tail
from shared.clock import SystemClock
from shared.errors import InternalError, OutcomeUnknown, Unavailable
from shared.records import FeedBatch, NewEvent, Record
from shared.settings import NodeSettings, PersistSettings

WINDOW = 64


class TestTurn:
    def test_the_preferred_node_always(self) -> None:
        turn = Turn(5)
        assert turn.decide(0, checkpoint=0, mine=0, end=0, preferred=True)
        assert turn.decide(1, checkpoint=7, mine=0, end=9, preferred=True)

    def test_others_when_the_checkpoint_stands_still_with_records_waiting(self) -> None:
        turn = Turn(5)
        assert not turn.decide(0, checkpoint=3, mine=0, end=10, preferred=False)
        assert not turn.decide(4.9, checkpoint=3, mine=0, end=20, preferred=False)
        assert turn.decide(5, checkpoint=3, mine=0, end=20, preferred=False)

    def test_not_while_nothing_waits(self) -> None:
        turn = Turn(5)
        for now in range(20):
            assert not turn.decide(now, checkpoint=10, mine=0, end=10, preferred=False)
        assert not turn.decide(24, checkpoint=10, mine=0, end=11, preferred=False)
        assert not turn.decide(28, checkpoint=10, mine=0, end=11, preferred=False)
        assert turn.decide(29, checkpoint=10, mine=0, end=11, preferred=False)

    def test_not_while_it_moves(self) -> None:
        turn = Turn(5)
        for now in range(20):
            assert not turn.decide(now, checkpoint=now // 4, mine=0, end=100, preferred=False)

    def test_goes_on_through_its_own_progress_until_somebody_else_makes_some(self) -> None:
        turn = Turn(5)
        turn.decide(0, checkpoint=0, mine=0, end=100, preferred=False)
        assert turn.decide(5, checkpoint=0, mine=0, end=100, preferred=False)
        assert turn.decide(6, checkpoint=0, mine=50, end=100, preferred=False)
        assert turn.decide(7, checkpoint=50, mine=60, end=100, preferred=False)
        assert turn.decide(8, checkpoint=60, mine=100, end=100, preferred=False)
        assert not turn.decide(9, checkpoint=120, mine=100, end=130, preferred=False)
        assert not turn.decide(13, checkpoint=120, mine=100, end=150, preferred=False)
        assert turn.decide(14, checkpoint=120, mine=100, end=150, preferred=False)


def record(offset: int, size: int = 10) -> Record:
    return Record(0, offset, 0, b"", "s", None, b"x" * size, 0, 1, 0)


class TestTogether:
    def test_as_much_as_the_bounds_allow(self) -> None:
        spans = enumerate((30, 60, 20, 200, 5))
        batches = [FeedBatch(p, 0, span, [record(o) for o in range(span)]) for p, span in spans]
        groups = list(together(batches, max_records=100, max_bytes=10**6))
        assert [[b.partition for b in group] for group in groups] == [[0, 1], [2], [3], [4]]
        groups = list(together(batches, max_records=1000, max_bytes=900))
        assert [[b.partition for b in group] for group in groups] == [[0, 1], [2], [3], [4]]
        assert list(together([], max_records=1, max_bytes=1)) == []


class TestPieces:
    @pytest.mark.parametrize(("most", "most_bytes"), [(1, 10**6), (7, 10**6), (1000, 25), (1000, 1), (3, 25)])
    def test_nothing_is_left_out(self, most: int, most_bytes: int) -> None:
        records = [record(offset) for offset in range(5, 60) if offset % 7 and not 30 < offset < 45]
        cut = list(pieces(FeedBatch(0, 3, 66, records), max_records=most, max_bytes=most_bytes))
        assert cut[0].start == 3
        assert cut[-1].next == 66
        assert all(a.next == b.start for a, b in pairwise(cut))
        assert [r for piece in cut for r in piece.records] == records
        for piece in cut:
            assert 0 < piece.next - piece.start <= most
            assert all(piece.start <= r.offset < piece.next for r in piece.records)
            assert sum(len(r.value) for r in piece.records[:-1]) < most_bytes

    def test_an_empty_batch_has_none(self) -> None:
        assert list(pieces(FeedBatch(0, 3, 3, []), max_records=5, max_bytes=5)) == []

    def test_stubs_alone(self) -> None:
        cut = list(pieces(FeedBatch(0, 0, 10, []), max_records=4, max_bytes=5))
        assert [(piece.start, piece.next) for piece in cut] == [(0, 4), (4, 8), (8, 10)]


@dataclass
class PersistedStore(ModelStore):
    """A store of its own, filled by `persist` alone."""

    held: dict[int, dict[int, Record | None]] = field(default_factory=dict)
    errors: list[Exception] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    writes: list[list[int]] = field(default_factory=list)
    broken: set[int] = field(default_factory=set)
    is_open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.held = {partition: {} for partition in range(self.log.partitions)}
        self.is_open.set()

    async def checkpoints(self) -> Mapping[int, int]:
        await asyncio.sleep(0)
        return {partition: len(held) for partition, held in self.held.items()}

    async def persist(self, *batches: FeedBatch) -> None:
        await asyncio.sleep(0)
        await self.is_open.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.writes.append([batch.partition for batch in batches])
        for batch in batches:
            if batch.partition in self.broken:
                raise InternalError("a partition that cannot be persisted")
        for batch in batches:
            self.hold(batch)

    def hold(self, batch: FeedBatch) -> None:
        held = self.held[batch.partition]
        assert batch.start <= len(held), "a hole"
        visible = {r.offset: r for r in batch.records}
        self.sizes.append(batch.next - batch.start)
        for offset in range(batch.start, batch.next):
            known = held.setdefault(offset, visible.get(offset))
            assert known == visible.get(offset), "two writers disagree"

    def shown(self, partition: int) -> list[Record]:
        return [r for r in self.held[partition].values() if r is not None]


class StillClock(SystemClock):
    """A clock that stands still."""

    def monotonic(self) -> float:
        return 0.0


class World:
    """A log, a store, and as many nodes' tails with persisters as asked."""

    def __init__(self, *, decides: bool = False) -> None:
        self.log = ModelLog(decides_identity=decides, window=WINDOW)
        self.store = PersistedStore(self.log)
        self.clock = SystemClock()

    def persister(self, *, ring: int = 4096, preferred: bool = True, **settings: float) -> tuple[Tail, Persister]:
        node = NodeSettings(window=WINDOW, ring_records=ring)
        tail = Tail(self.log, self.store, node, lambda *_: None)
        own = PersistSettings.model_validate({"linger": 0.0, "batch_records": 100, **settings})
        return tail, Persister(
            self.log, self.store, tail, own, self.clock, window=WINDOW, preferred=lambda _: preferred
        )

    def write(self, partition: int, sent: list[NewEvent], *, base: int | None = None) -> None:
        for one in sent:
            at = len(self.log.records[partition])
            self.log.write(partition, one, base=at if base is None else base)

    def is_complete(self) -> bool:
        return all(len(self.store.held[p]) == len(records) for p, records in self.log.records.items())

    def check(self) -> None:
        for partition in self.log.records:
            assert self.store.shown(partition) == self.log.visible(partition)


@pytest.mark.parametrize("decides", [True, False])
async def test_everything_comes_into_the_store(decides: bool) -> None:
    world = World(decides=decides)
    tail, persister = world.persister()
    world.write(0, events(range(250)))
    async with running(tail.run), running(persister.run):
        await until(world.is_complete)
        for n in range(20):
            world.write(n % 3, events(range(1000 + 50 * n, 1050 + 50 * n)))
            await asyncio.sleep(0)
        await until(world.is_complete)
        await until(lambda: set(persister.lag.values()) == {0})
    world.check()
    assert max(world.store.sizes) <= 100


async def test_partitions_travel_together() -> None:
    world = World()
    tail, persister = world.persister()
    for partition in range(3):
        world.write(partition, events(range(partition * 100, partition * 100 + 30)))
    async with running(tail.run):
        await until(lambda: sum(ring.next for ring in tail.rings.values()) == 90)
        async with running(persister.run):
            await until(world.is_complete)
    world.check()
    assert world.store.writes == [[0, 1, 2]]


@pytest.mark.parametrize("ring", [4096, 300, 100])
async def test_one_partition_that_cannot_be_persisted_stops_no_other(ring: int) -> None:
    world = World()
    world.store.broken = {1}
    tail, persister = world.persister(ring=ring, linger=0.05)
    async with running(tail.run), running(persister.run):
        for partition, count in enumerate((20, 250, 30)):
            world.write(partition, events(range(partition * 1000, partition * 1000 + count)))
        await until(lambda: [len(world.store.held[partition]) for partition in range(3)] == [20, 0, 30])
        world.store.broken = set()
        await until(world.is_complete)
    world.check()


async def test_a_ring_about_to_lose_something_is_not_kept_waiting() -> None:
    world = World()
    world.clock = StillClock()  # so nothing has ever waited long enough
    tail, persister = world.persister(linger=1.0, ring=100)
    async with running(tail.run), running(persister.run):
        world.write(0, events(range(10)))
        await until(lambda: persister.lag.get(0) == 10)
        assert world.store.writes == []
        world.write(0, events(range(10, 60)))
        await until(world.is_complete)
    world.check()


async def test_duplicates_and_voids_are_stubs() -> None:
    world = World()
    tail, persister = world.persister()
    world.write(0, [*events(range(100)), *events(range(60, 100)), *events(range(100, 140))])
    world.write(0, events(range(200, 220)), base=0)
    async with running(tail.run), running(persister.run):
        await until(world.is_complete)
    world.check()
    assert len(world.store.shown(0)) == 140


async def test_what_the_ring_lost_is_read_again_and_judged_the_same() -> None:
    """The store is away while far more is appended than the ring holds, copies among it."""
    world = World()
    tail, persister = world.persister(ring=32)
    async with running(tail.run), running(persister.run):
        world.write(0, events(range(50)))
        await until(world.is_complete)
        world.store.is_open.clear()
        for n in range(30):
            world.write(0, events(range(50 + 40 * n, 90 + 40 * n)))
            world.write(0, events(range(60 + 40 * n, 80 + 40 * n)))
        await until(lambda: tail.position(0) == len(world.log.records[0]))
        world.store.is_open.set()
        await until(world.is_complete)
    world.check()
    assert len(world.store.shown(0)) == 1250


async def test_replay_begins_a_window_earlier() -> None:
    world = World()
    world.write(0, [*events(range(100)), event(90), event(95), *events(range(100, 110))])
    replay = Replay(world.log, 0, 100, window=WINDOW, log_start=0)
    batch = await replay.read(max_records=1000)
    await replay.close()
    assert batch is not None
    assert (batch.start, batch.next) == (100, 112)
    assert batch.records == world.log.visible(0)[100:]


async def test_errors_are_tried_again() -> None:
    world = World()
    world.store.errors = [Unavailable("away"), OutcomeUnknown("perhaps"), Unavailable("away")]
    tail, persister = world.persister()
    world.write(0, events(range(10)))
    async with running(tail.run), running(persister.run):
        await until(world.is_complete)
    world.check()


async def test_handoffs_are_refused_while_the_store_is_too_far_behind() -> None:
    world = World()
    tail, persister = world.persister(max_lag=1000)
    world.store.is_open.clear()
    assert not persister.refuses(0)
    async with running(tail.run), running(persister.run):
        world.write(0, events(range(1000)))
        await until(lambda: persister.lag.get(0) == 1000)
        assert not persister.refuses(0)
        world.write(0, events(range(1000, 1001)))
        await until(lambda: persister.refuses(0))
        assert not persister.refuses(1)
        world.store.is_open.set()
        await until(lambda: not persister.refuses(0))
        await until(world.is_complete)
    world.check()


async def test_several_nodes_at_once_agree() -> None:
    world = World()
    nodes = [world.persister(ring=32 if n else 4096) for n in range(3)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work()) for tail, persister in nodes for work in (tail.run, persister.run)]
        for n in range(30):
            world.write(n % 3, events(range(n * 40, n * 40 + 40)))
            world.write(n % 3, events(range(n * 40, n * 40 + 5)))
            await asyncio.sleep(0.002)
        await until(world.is_complete)
        for task in tasks:
            task.cancel()
    world.check()


async def test_who_is_not_preferred_takes_over_only_when_nobody_persists() -> None:
    world = World()
    tail, persister = world.persister(preferred=False, takeover=0.3)
    world.write(0, events(range(10)))
    async with running(tail.run), running(persister.run):
        await until(lambda: persister.lag.get(0) == 10)
        assert world.store.sizes == []
        await until(world.is_complete)
    world.check()
