"""The watch over clients that take nothing, on a clock that a test moves."""

from __future__ import annotations

import asyncio

from hand_clock import HandClock

from gateway.stalls import SLICE, StallWatch

TIMEOUT = 30.0


class Client:
    def __init__(self, left: int) -> None:
        self.left = left
        self.was_cut = False
        self.kernel_timeout = TIMEOUT
        self.looks = 0

    def outstanding(self) -> int:
        self.looks += 1
        return self.left

    def set_kernel_timeout(self, seconds: float) -> None:
        self.kernel_timeout = seconds

    def cut(self) -> None:
        self.was_cut = True


async def test_only_who_makes_no_progress_is_cut() -> None:
    clock = HandClock()
    watch = StallWatch(clock, TIMEOUT)
    stuck, slow, back = Client(1000), Client(1000), Client(1000)
    for client in (stuck, slow, back):
        watch.add(client)
    clock.now += 20
    slow.left = 999
    await watch.look()
    watch.discard(back)
    clock.now += 15
    await watch.look()
    assert (stuck.was_cut, slow.was_cut, back.was_cut) == (True, False, False)
    clock.now += 14
    await watch.look()
    assert not slow.was_cut
    clock.now += 2
    await watch.look()
    assert slow.was_cut
    assert len(watch) == 0


async def test_a_connection_that_serves_other_requests_has_its_kernel_timeout_again() -> None:
    watch, client = StallWatch(HandClock(), TIMEOUT), Client(1000)
    watch.add(client)
    await watch.look()
    assert client.kernel_timeout == 0
    watch.forget(client)
    assert client.kernel_timeout == TIMEOUT


async def test_the_kernel_ends_nobody_who_is_watched() -> None:
    clock = HandClock()
    watch = StallWatch(clock, TIMEOUT)
    slow, brief = Client(1000), Client(1000)
    watch.add(slow)
    watch.add(brief)
    watch.discard(brief)
    await watch.look()
    assert (slow.kernel_timeout, brief.kernel_timeout) == (0, TIMEOUT)
    watch.discard(slow)  # it takes bytes again, but not all have reached it
    await watch.look()
    assert slow.kernel_timeout == 0
    slow.left = 0
    await watch.look()
    assert slow.kernel_timeout == TIMEOUT
    looks = slow.looks
    await watch.look()
    assert slow.looks == looks, "it is nobody's concern any more"


async def test_nothing_is_kept_of_who_has_ended() -> None:
    watch = StallWatch(HandClock(), TIMEOUT)
    gone = Client(1000)
    watch.add(gone)
    await watch.look()
    watch.forget(gone)
    looks = gone.looks
    await watch.look()
    assert gone.looks == looks
    assert not gone.was_cut


async def test_many_are_looked_at_in_slices() -> None:
    clock = HandClock()
    watch = StallWatch(clock, TIMEOUT)
    clients = [Client(1000) for _ in range(10 * SLICE)]
    for client in clients:
        watch.add(client)
    clock.now += TIMEOUT
    looking = asyncio.create_task(watch.look())
    seen = sum(client.looks for client in clients)
    while not looking.done():
        await asyncio.sleep(0)
        now = sum(client.looks for client in clients)
        assert now - seen <= SLICE
        seen = now
        watch.discard(clients[-1])  # in the middle of a look
    assert [client.was_cut for client in clients] == [True] * (len(clients) - 1) + [False]
