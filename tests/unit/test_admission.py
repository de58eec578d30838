"""When a queue is too long for its pace; without a loop and on a clock of the test's own."""

from __future__ import annotations

from collections import deque

from gateway.admission import FEW, Admission

STEP = 0.01


class Queue:
    """A partition that settles ``pace`` events a second, first in, first out."""

    def __init__(self, pace: float) -> None:
        self.pace = pace
        self.waiting = 0
        self.settled_at = self.moving_since = float("-inf")
        self._line: deque[list[float]] = deque()

    def put(self, now: float, events: int) -> None:
        if not self.waiting:
            self.settled_at = max(self.settled_at, now)
        self.waiting += events
        self._line.append([now, events])

    def work(self, now: float) -> tuple[int, float]:
        """What one step settles: how many, and how long the first of them had waited."""
        settled = left = min(round(self.pace * STEP), self.waiting)
        came = self._line[0][0] if self._line else now
        while left:
            take = min(left, int(self._line[0][1]))
            left -= take
            self._line[0][1] -= take
            if not self._line[0][1]:
                self._line.popleft()
        self.waiting -= settled
        return settled, now - came


class World:
    def __init__(self, *queues: Queue, max_wait: float = 2.0) -> None:
        self.now = 100.0
        self.queues = queues
        self.admission = Admission(max_wait)
        self.taken = self.refused = self.longest = 0

    def run(self, seconds: float, load: float) -> None:
        """So many events a second come to each queue."""
        for _ in range(round(seconds / STEP)):
            self.now += STEP
            for queue in self.queues:
                if self.now >= self.admission.look_again:
                    self.admission.look(self.now, self.queues)
                if self.admission.is_closed:
                    self.refused += round(load * STEP)
                else:
                    self.taken += round(load * STEP)
                    queue.put(self.now, round(load * STEP))
                settled, waited = queue.work(self.now)
                if settled:
                    self.admission.settled(queue, self.now, settled, waited)
                self.longest = max(self.longest, queue.waiting)


def test_a_load_that_can_be_borne_is_never_refused() -> None:
    world = World(Queue(10_000), Queue(10_000))
    world.run(30, 9_000)
    assert not world.refused


def test_three_times_the_load_keeps_the_work_going_and_the_queue_short() -> None:
    queue = Queue(10_000)
    world = World(queue)
    world.run(30, 30_000)
    assert 0.99 <= (world.taken - queue.waiting) / (30 * 10_000) <= 1.0, "it never ran dry"
    assert world.longest <= 10_000 * 2.0 * 1.5
    world.run(5, 5_000)
    refused = world.refused
    world.run(5, 5_000)
    assert world.refused == refused, "it opens again"


def test_a_burst_into_a_quiet_gateway_is_taken() -> None:
    queue = Queue(10_000)
    world = World(queue)
    world.run(5, 100)
    queue.put(world.now, 15_000)
    world.run(5, 100)
    assert not world.refused


def test_a_partition_that_stands_still_is_waited_for_and_what_gathered_is_worked_off() -> None:
    stands, moves = Queue(10_000), Queue(10_000)
    world = World(stands, moves)
    world.run(5, 3_000)
    stands.pace = 1e-9
    world.run(4, 3_000)
    stands.pace = 10_000
    world.run(5, 3_000)
    assert not world.refused
    assert stands.waiting < FEW
