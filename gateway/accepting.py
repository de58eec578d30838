"""Takes connections from listening sockets, some in each turn of the event loop.

Left to themselves, asyncio takes all that wait in one turn, which holds up whatever runs, and uvloop (its libuv, since
1.45) one in each, so that a crowd waits for as many turns as it has members, and the longer those are, the longer.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence

ACCEPTS_A_TURN = 16
"""Connections taken in one turn of the event loop; each costs about a tenth of a millisecond."""
PAUSE = 0.2
"""Seconds without taking any where the system has no room for one more."""
CROWDED_PAUSE = 0.005
"""Seconds between one and the next where there are nearly too many: whoever is sent away shall be gone by then."""

logger = logging.getLogger(__name__)


class Acceptor:
    """Connections come in through it until it is closed."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        make: Callable[[], asyncio.Protocol],
        *,
        per_turn: int = ACCEPTS_A_TURN,
        is_crowded: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """``is_crowded``: whether there are nearly too many, with so many who are just coming in."""
        self._loop = asyncio.get_running_loop()
        self._make = make
        self._per_turn = per_turn
        self._is_crowded = is_crowded
        self._open = list(listeners)
        self._entering: set[asyncio.Task[None]] = set()
        self._timers: dict[socket.socket, asyncio.TimerHandle] = {}
        for listener in self._open:
            self._listen(listener)

    async def close(self) -> None:
        """Take no more; those that were taken have been made connections then. Idempotent. The sockets stay open."""
        for listener in self._open:
            self._loop.remove_reader(listener)
        for timer in self._timers.values():
            timer.cancel()
        self._open.clear()
        self._timers.clear()
        if self._entering:
            await asyncio.wait(self._entering)

    def _listen(self, listener: socket.socket) -> None:
        self._timers.pop(listener, None)
        self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(self._per_turn):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor or memory for it: it waits where it is
                logger.warning("no connection can be taken: %s", error.strerror)
                self._pause(listener, PAUSE)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._enter(connection))
            self._entering.add(task)
            task.add_done_callback(self._entering.discard)
            if self._is_crowded(len(self._entering)):
                self._pause(listener, CROWDED_PAUSE)
                return

    def _pause(self, listener: socket.socket, seconds: float) -> None:
        self._loop.remove_reader(listener)
        self._timers[listener] = self._loop.call_later(seconds, self._listen, listener)

    async def _enter(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, connection)
        except OSError as error:
            logger.debug("a connection was gone before it was served: %s", error)
            connection.close()
        except Exception:
            logger.exception("a connection could not be served")
            connection.close()
