"""The connection to a cluster: always one client or the search for one, in the background."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable
from typing import Final

from shared.backends.hazelcast.client import Client, NotTakenInError, why_unreachable
from shared.backends.hazelcast.cluster import SETTING, Cluster, address_text
from shared.cancelling import is_cancelled
from shared.errors import Unavailable

MIN_PAUSE: Final = 0.1
MAX_PAUSE: Final = 0.5
"""Seconds between two rounds of attempts: doubling, with jitter. A round costs one TCP connection for each address, and
who finds a cluster much later than others that came back empty is taken for dead by them."""
HEAD_START: Final = 0.2
"""Seconds that one address has before the next is tried too."""
RETELL: Final = 10.0
"""While there is no connection, another reason for it is logged at most once in so many seconds."""

_logger = logging.getLogger(__name__)


class ClusterLink:
    """Holds the client, replaces it when it is lost, for ever."""

    def __init__(self, cluster: Cluster) -> None:
        self.detail = f"connecting to {cluster}"
        """What is wrong; empty while connected."""
        self._watchers: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count()
        self._cluster = cluster
        self._client: Client | None = None
        self.rounds = 0
        """How many searches found nothing."""
        self._logged = ""
        self._logged_at = float("-inf")

    def client(self) -> Client:
        """The client as it is now. Raises `Unavailable`."""
        if self._client is None or self._client.lost.is_set():
            raise Unavailable(self.detail or f"the connection to {self._cluster} was lost")
        return self._client

    def watch(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call this when the set may have changed, and after each connect; what is returned ends that."""
        number = next(self._numbers)
        self._watchers[number] = call

        def end() -> None:
            self._watchers.pop(number, None)

        return end

    async def run(self) -> None:
        """Search, hold, search again, until cancelled."""
        pause = MIN_PAUSE
        while True:
            try:
                client = await self._search()
                if client is not None:
                    pause = MIN_PAUSE
                    await self._hold(client)
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and is_cancelled():
                    raise
                # Its owner needs no registry to live, so no defect in here may end it.
                _logger.exception("the connection to %s failed in a way that was not expected", self._cluster)
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))
            pause = min(2 * pause, MAX_PAUSE)

    async def _hold(self, client: Client) -> None:
        try:
            self._client = client
            self._tell("")
            self._has_changed()
            await client.lost.wait()
            _logger.info("the connection to %s was lost", self._cluster)
            self.detail = f"the connection to {self._cluster} was lost"
        finally:
            self._client = None
            await client.close()

    async def _search(self) -> Client | None:
        """One round over all addresses."""
        members = random.sample(self._cluster.members, len(self._cluster.members))
        found = await asyncio.gather(*map(why_unreachable, members))
        wrong = dict(zip(members, found, strict=True))
        client = await self._race([member for member in members if not wrong[member]], wrong)
        if client is None:
            tried = "; ".join(f"{address_text(member)} {wrong[member]}" for member in self._cluster.members)
            self._tell(f"{SETTING}: no member of the cluster {self._cluster.name!r} was found; tried {tried}")
            self.rounds += 1
        return client

    async def _race(self, members: list[tuple[str, int]], wrong: dict[tuple[str, int], str]) -> Client | None:
        """The first client that a member takes in. They start one after the other, without waiting for each other: one
        that is stopped, or still starting, accepts connections and does not answer."""
        won: list[Client] = []

        async def contend(member: tuple[str, int], delay: float) -> None:
            await asyncio.sleep(delay)
            try:
                won.append(await Client.start(self._cluster, member, self._has_changed))
            except NotTakenInError as error:
                wrong[member] = str(error)

        spare = won
        try:
            async with asyncio.TaskGroup() as group:
                running = {group.create_task(contend(each, n * HEAD_START)) for n, each in enumerate(members)}
                while running and not won:
                    _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in running:
                    task.cancel()
            spare = won[1:]
        finally:
            for client in spare:
                await client.close()
        return won[0] if won else None

    def _has_changed(self) -> None:
        for call in list(self._watchers.values()):
            call()

    def _tell(self, detail: str) -> None:
        """Log each change once."""
        self.detail = detail
        now = asyncio.get_running_loop().time()
        if not detail:
            _logger.info("connected to %s", self._cluster)
            self._logged_at = float("-inf")
        elif detail != self._logged and now - self._logged_at >= RETELL:
            _logger.warning("%s", detail)
            self._logged_at = now
        else:
            return
        self._logged = detail
