"""The connection to a cluster: always one client or the search for one, in the background.

A cluster may fall apart and stay so for as long as the cause lasts: where one member stands still, its fellows now and
then lose each other too, and do not merge before it goes on or ends (hazelcast#26388, #26473; seen with 5.7.0). Members
of either part answer, so clients that stay where they came in would see only those processes that came in there too.
Therefore a client whose cluster has not more than half as many members as there are addresses goes over to the part
that has, or, where none has, to the part of the first address that answers, in one order that all of them know.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable
from typing import Final

from shared.backends.hazelcast.client import SILENCE, Client, NotTakenInError, why_unreachable
from shared.backends.hazelcast.cluster import SETTING, Cluster, address_text
from shared.cancelling import is_cancelled
from shared.errors import Unavailable

MIN_PAUSE: Final = 0.1
MAX_PAUSE: Final = 0.5
"""Seconds between two rounds of attempts: doubling, with jitter. A round costs one TCP connection for each address, and
who finds a cluster much later than others that came back empty is taken for dead by them."""
HEAD_START: Final = 0.2
"""Seconds that one address has before the next is tried too."""
MAX_SILENCE: Final = 5.0
"""Seconds that a client may be silent at most. It is granted twice as much as the last one where that was never heard
at all: where nobody can answer yet, more and more new clients only make a busy machine busier."""
POLL: Final = 0.25
"""Seconds between two looks at which members a client knows; no I/O."""
SETTLE: Final = 1.0
"""Seconds from their last change until a client of such a part looks for another part of it. Short and the
same for all, as those that move later are missed by those that moved."""
REGROUP: Final = 3.0
"""Seconds until it looks again, doubling while the members stay the same."""
MAX_REGROUP: Final = 24.0
LINGER: Final = 0.6
"""Seconds that a client is kept for the calls that it still has, once another one has taken its place."""
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
        self._other: Client | None = None
        """A client of another part of the cluster, which is to take the client's place."""
        self._patience = SILENCE
        self.rounds = 0
        """How many searches found nothing."""
        self.moves = 0
        """How often it went over to another part of the cluster."""
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
        try:
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
        finally:
            await self._let_go()

    async def _hold(self, client: Client) -> None:
        """Until it is lost, and so is whichever took its place."""
        current: Client | None = client
        try:
            self._client = current
            self._tell("")
            while current is not None:
                current = await self._use(current)
            _logger.info("the connection to %s was lost", self._cluster)
            self.detail = f"the connection to {self._cluster} was lost"
        finally:
            await self._let_go()

    async def _use(self, client: Client) -> Client | None:
        """Until it is lost, or another one has taken its place, which is returned."""
        client.patience = self._patience
        self._has_changed()
        lost, look = asyncio.create_task(client.lost.wait()), asyncio.create_task(self._look(client))
        try:
            done, _ = await asyncio.wait((lost, look), return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()
            look.cancel()
            await asyncio.wait((lost, look))
        if look in done:
            look.result()  # a defect in there is told of
        self._patience = SILENCE if client.was_heard else min(2 * client.patience, MAX_SILENCE)
        self._client, self._other = self._other, None
        try:
            if self._client is not None:
                self.moves += 1
                _logger.warning("the cluster %s has fallen apart; went over to its other part", self._cluster)
                await asyncio.sleep(LINGER)
        finally:
            await client.close()
        return self._client

    async def _look(self, client: Client) -> None:
        """Until another client is to take its place."""
        known, pause, due = frozenset[object](), REGROUP, float("inf")
        while self._other is None:
            await asyncio.sleep(POLL)
            now, fellows = asyncio.get_running_loop().time(), client.fellows()
            if fellows != known:
                known, pause, due = fellows, REGROUP, now + SETTLE
            if now >= due and fellows and not self._is_most(fellows):
                self._other = await self._other_part(client)
                due = asyncio.get_running_loop().time() + pause * random.uniform(0.7, 1.3)
                pause = min(2 * pause, MAX_REGROUP)

    async def _other_part(self, client: Client) -> Client | None:
        """A client of the part of the cluster in which all clients meet; None where this one is in it already."""
        first: Client | None = None
        is_decided = False
        try:
            for member in sorted(self._cluster.members):
                try:
                    found = await Client.start(self._cluster, member, self._has_changed)
                except NotTakenInError:
                    continue
                is_other = found.fellows().isdisjoint(client.fellows())
                if is_other and (self._is_most(found.fellows()) or not is_decided):
                    first, found = found, first
                is_decided = True
                if found is not None:
                    await found.close()
                if first is not None and self._is_most(first.fellows()):
                    break
        except BaseException:
            if first is not None:
                await first.close()
            raise
        return first

    def _is_most(self, fellows: frozenset[object]) -> bool:
        return 2 * len(fellows) > len(self._cluster.members)

    async def _let_go(self) -> None:
        held, self._client, self._other = (self._client, self._other), None, None
        for client in held:
            if client is not None:
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
