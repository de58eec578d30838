"""A deterministic event loop on virtual time: it never waits, time jumps to the next timer, and a run is a function
of its seed alone.

What would differ from run to run is taken away: futures, tasks and timeouts hash by their number instead of their
address, so that sets of them iterate alike; there are no threads, no sockets and no garbage collector at work.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, TypeVar

T = TypeVar("T")
MAX_STEPS = 400_000


class Deadlock(RuntimeError):
    """Nothing is ready and no timer runs: nothing would ever happen again."""


class Livelock(RuntimeError):
    """Far more steps than any schedule needs."""


_numbers = count()


class _Future(asyncio.Future[Any]):
    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.number = next(_numbers)

    def __hash__(self) -> int:
        return self.number


class _Task(asyncio.Task[Any]):
    def __init__(self, coro: Coroutine[Any, Any, Any], **kwargs: Any) -> None:
        self.number = next(_numbers)
        super().__init__(coro, **kwargs)

    def __hash__(self) -> int:
        return self.number


class _Timers:
    """What the base loop takes for its selector."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        self._loop.jump(timeout)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0
        self._clock_resolution = 1e-9
        self._selector = _Timers(self)
        self.set_task_factory(lambda loop, coro, **kwargs: _Task(coro, loop=loop, **kwargs))  # type: ignore[arg-type]

    def time(self) -> float:
        return self.now

    def jump(self, timeout: float | None) -> None:
        """Instead of waiting."""
        self.steps += 1
        if timeout is None:
            raise Deadlock("nothing is ready and no timer runs")
        if self.steps > MAX_STEPS:
            raise Livelock(f"{self.steps} steps by {self.now:.3f} s")
        self.now += timeout

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def _process_events(self, _events: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""


class VirtualClock:
    """`shared.clock.Clock` of a loop."""

    EPOCH_MS = 1_700_000_000_000

    def __init__(self, loop: VirtualLoop, phase: float = 0.0) -> None:
        self._loop = loop
        self.phase = phase

    def monotonic(self) -> float:
        return self._loop.now

    def unix_ms(self) -> int:
        return self.EPOCH_MS + int(self._loop.now * 1000)


def _timeout_hash(self: Any) -> int:
    number: int = self.__dict__.setdefault("_number", next(_numbers))
    return number


def simulate(seed: int, main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run ``main`` to its end on a loop of its own. Raises what it raises, `Deadlock` and `Livelock`."""
    global _numbers
    _numbers = count(1)
    state = random.getstate()
    random.seed(seed)
    plain = asyncio.Timeout.__hash__
    asyncio.Timeout.__hash__ = _timeout_hash  # type: ignore[method-assign]
    was_on = gc.isenabled()
    gc.disable()
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main(loop))
    finally:
        _end(loop)
        random.setstate(state)
        asyncio.Timeout.__hash__ = plain  # type: ignore[method-assign]
        if was_on:
            gc.enable()


def _end(loop: VirtualLoop) -> None:
    """Cancel what is left. A run that failed may leave anything."""
    loop.set_exception_handler(lambda _loop, _context: None)
    loop.steps = 0
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=600))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
