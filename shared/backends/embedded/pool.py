"""Reading ``log.db`` off the event loop: a few connections, each used by one thread at a time."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import apsw

from shared.backends.embedded.database import Database, unavailable
from shared.errors import Overloaded, Unavailable

T = TypeVar("T")

MAX_WAITING: Final = 1024
"""Questions that wait for a thread; further ones are refused."""


class ReadPool:
    """Answers questions in threads, each question in one go."""

    def __init__(self, connections: Sequence[Database], *, timeout: float) -> None:
        self._connections = connections
        self._free: queue.SimpleQueue[Database] = queue.SimpleQueue()
        for db in connections:
            self._free.put(db)
        self._executor = ThreadPoolExecutor(len(connections), thread_name_prefix="log-reader")
        self._timeout = timeout
        self._waiting = 0

    async def ask(self, question: Callable[[Database], T]) -> T:
        """Run a question. Raises `Unavailable` where it fails or takes too long."""
        if self._waiting >= MAX_WAITING:
            raise Overloaded("too many questions to the log at once", retry_after=1.0)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.get_running_loop().run_in_executor(self._executor, self._answer, question)
        except TimeoutError as error:
            raise Unavailable("the log did not answer in time", retry_after=1.0) from error
        except apsw.Error as error:
            raise unavailable(error) from error
        finally:
            self._waiting -= 1

    def _answer(self, question: Callable[[Database], T]) -> T:
        db = self._free.get_nowait()  # as many connections as threads
        try:
            return question(db)
        finally:
            self._free.put(db)

    async def close(self) -> None:
        """End the threads and close the connections."""
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)
        for db in self._connections:
            db.close()
