"""Routing: which node a partition's events go to and come from. A hint for warm caches and even work, never a lock.

The router follows the registry's picture, keeps a link to every node and ranks the reachable ones for each partition by
weighted rendezvous hashing: live ones first, suspects behind them, draining ones as a last resort. A dead node and one
whose link broke are out at once; they come back by a fresh beat and an answered question.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol
from weakref import WeakSet

from gateway.attempts import Attempt, Losable
from gateway.routes import RouteTable
from gateway.watch import Watch
from shared.clock import Clock, to_tick
from shared.detector import NodeState
from shared.direct import DirectHandoff
from shared.errors import CdrsError, LinkBroken, Unavailable
from shared.member_changes import Subscription
from shared.membership import Picture
from shared.ports import Member, NodeLink
from shared.position import Epoch
from shared.records import NodeInfo
from shared.settings import Settings

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
CLOSE_TIMEOUT = 1.0
LOOK_INTERVAL = 1.0
"""Seconds between two questions to each node how it fares."""
WATCH_INTERVAL = 5.0
"""Seconds after which the router looks at the picture even if nobody told it of a change."""

logger = logging.getLogger(__name__)


class Members(Protocol):
    """`shared.membership.Membership`, as far as the router needs it."""

    @property
    def picture(self) -> Picture: ...

    def subscribe(self, *, loads: bool = True) -> Subscription: ...

    def break_link(self, key: str) -> None: ...


class NodeHandle:
    """A node that was reached, for as long as the link to it holds. A node that comes back gets a new handle."""

    __slots__ = ("_attempts", "_gone", "direct", "flights", "gone", "key", "link", "member")

    def __init__(self, member: Member, link: NodeLink) -> None:
        self.key = member.key
        self.member = member
        self.link = link
        self.direct = link if isinstance(link, DirectHandoff) else None
        """The link once more where it takes many partitions at once."""
        self.flights: set[Losable] = set()
        """Handoffs under way by `direct`."""
        self.gone = False
        """Out of routing for good; whatever is under way on it should be given up."""
        self._gone = asyncio.Event()
        self._attempts: set[asyncio.Timeout] = set()

    def attempt(self, timeout: float) -> Attempt:
        """A context in which to use the link: raises ``TimeoutError`` in it after ``timeout`` seconds, and
        `LinkBroken` as soon as the node is gone."""
        return Attempt(self, self._attempts, timeout)

    def leave(self) -> None:
        """Take it out of routing. For the router only; idempotent."""
        self.gone = True
        self._gone.set()
        for scope in self._attempts:
            if not scope.expired():
                scope.reschedule(0)
        for flight in tuple(self.flights):
            flight.lose()

    async def wait_gone(self, timeout: float) -> bool:
        """Until the node is out of routing; False where it is not within ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._gone.wait()
        except TimeoutError:
            return False
        return True


class _Peer:
    """A node the registry names, and the task that keeps a link to it."""

    __slots__ = (
        "beat", "broken_at", "handle", "live_since", "member", "refused", "seeded", "state", "strained", "task", "woken"
    )  # fmt: skip

    def __init__(self, member: Member, *, seeded: bool) -> None:
        self.member = member
        self.seeded = seeded
        """Named by the launcher and not seen in the registry yet."""
        self.state = NodeState.LIVE
        self.beat = -1
        self.broken_at: int | None = None
        """Its beat when the link broke; a later one lets it be tried again."""
        self.handle: NodeHandle | None = None
        self.live_since: float | None = None
        """Since when it has been both reachable and live, monotonic."""
        self.refused = False
        self.strained: frozenset[int] = frozenset()
        """Partitions for which it wants others to come first, as it last said."""
        self.woken = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class Router:
    """The gateway's view of the nodes."""

    def __init__(
        self,
        membership: Members,
        settings: Settings,
        clock: Clock,
        connect: Callable[[Member], NodeLink],
    ) -> None:
        """``connect`` makes a link to a member without waiting: the node itself where it lives in this process."""
        self._membership = membership
        self.settings = settings
        self.clock = clock
        self._connect = connect
        self._peers: dict[str, _Peer] = {}
        self._table: RouteTable[NodeHandle] = RouteTable()
        self._info: NodeInfo | None = None
        self._is_stale = True
        self._watches: WeakSet[Watch] = WeakSet()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: asyncio.TaskGroup | None = None

    def seed(self, member: Member) -> None:
        """A node known before the registry has been read, so that a start need not wait for it."""
        if member.role == "node" and member.key not in self._peers:
            self._peers[member.key] = _Peer(member, seeded=True)

    # --- what others ask ----------------------------------------------------------------------

    @property
    def epoch(self) -> Epoch:
        """The log's incarnation. Raises `Unavailable` before the first node was reached."""
        return (self._info or self._known()).epoch

    @property
    def partitions(self) -> int:
        """How many partitions the log has. Raises `Unavailable` before the first node was reached."""
        return (self._info or self._known()).partitions

    def former(self, epoch: Epoch) -> Mapping[int, int] | None:
        """Per partition how far the log goes on with what it had in another epoch, at the same offsets; None: not at
        all, as far as is known."""
        return next((each.stops for each in self._known().former if each.epoch == epoch), None)

    def _known(self) -> NodeInfo:
        if self._info is None:
            raise Unavailable("no node has been reached yet", retry_after=1)
        return self._info

    @property
    def is_known(self) -> bool:
        """Whether epoch and partitions are known: true for good once the first node was reached."""
        return self._info is not None

    @property
    def is_ready(self) -> bool:
        """Whether there is a node to send events to."""
        return bool(self.ranked(0))

    async def ready(self, timeout: float) -> bool:
        """Wait until there is a node to send events to; False where none was found in time."""
        watch = self.watch()
        deadline = self.clock.monotonic() + timeout
        while not self.is_ready:
            left = deadline - self.clock.monotonic()
            if left <= 0 or not await watch.wait(left):
                return self.is_ready
        return True

    def ranked(self, partition: int) -> Sequence[NodeHandle]:
        """The nodes to try for a partition, best first; empty where none can be reached. Costs a look-up."""
        return self._table.ranked(partition)

    def any(self) -> NodeHandle:
        """A node to ask what every node knows; the same one while it lives. Raises `Unavailable`: there is none."""
        for handle in self.ranked(0):
            return handle
        raise Unavailable("no node can be reached", retry_after=1)

    def handles(self) -> Sequence[NodeHandle]:
        """Every node with a link that holds, in no particular order."""
        return [peer.handle for peer in self._peers.values() if peer.handle is not None]

    def watch(self, on_ring: Callable[[], None] | None = None) -> Watch:
        """Something to wait on for the next change of the routes; ``on_ring``, which must not fail or wait, is called
        at each. Ends when it is let go."""
        watch = Watch(on_ring)
        self._watches.add(watch)
        return watch

    def broken(self, handle: NodeHandle) -> None:
        """The link broke or went silent: the node is out of routing before this returns, everything under way on it is
        given up, and it stays out until a later beat was seen and it answered a question. Idempotent."""
        peer = self._peers.get(handle.key)
        if handle.gone or peer is None or peer.handle is not handle:
            return
        logger.warning("lost the link to %s", handle.key)
        self._drop(peer)
        self._membership.break_link(handle.key)
        self._rank()

    # --- the loop -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the picture and keep the links, until cancelled."""
        with self._membership.subscribe(loads=False) as changes:
            try:
                async with asyncio.TaskGroup() as self._tasks:
                    while True:
                        self._reconcile()
                        self._rank()
                        await changes.wait(WATCH_INTERVAL)
            finally:
                self._tasks = None
                for peer in self._peers.values():
                    self._drop(peer)
                self._rank()
                if self._timer is not None:
                    self._timer.cancel()

    def _reconcile(self) -> None:
        picture = self._membership.picture
        self._is_stale = picture.registry != "ok"
        nodes = {key: view for key, view in picture.members.items() if view.member.role == "node"}
        for key, view in nodes.items():
            peer = self._peers.get(key)
            if peer is None:
                peer = self._peers[key] = _Peer(view.member, seeded=False)
            peer.seeded = False
            peer.state = view.state
            peer.beat = view.beat.seq if view.beat is not None else -1
            if peer.state is NodeState.DEAD and peer.handle is not None and not self._is_stale:
                logger.warning("%s has been silent for %d ms and counts as dead", key, view.age_ms)
                self._drop(peer)
            peer.woken.set()
        for key in [key for key, peer in self._peers.items() if key not in nodes and not peer.seeded]:
            self._remove(key)
        for peer in self._peers.values():
            if peer.task is None and self._tasks is not None:
                peer.task = self._tasks.create_task(self._tend(peer), name=f"link {peer.member.key}")

    def _remove(self, key: str) -> None:
        peer = self._peers.pop(key)
        self._drop(peer)
        if peer.task is not None:
            peer.task.cancel()

    def _drop(self, peer: _Peer) -> None:
        if peer.handle is not None:
            peer.handle.leave()
            peer.handle = None
            view = self._membership.picture.members.get(peer.member.key)
            peer.broken_at = view.beat.seq if view is not None and view.beat is not None else -1

    # --- one link -----------------------------------------------------------------------------

    async def _tend(self, peer: _Peer) -> None:
        """Keep a link to one node: reach it, watch until it is lost, and again."""
        pause = FIRST_PAUSE
        while True:
            while not self._may_try(peer):
                peer.woken.clear()
                await peer.woken.wait()
            link: NodeLink | None = None
            try:
                link = self._connect(peer.member)
                if await self._reach(peer, link):
                    pause = FIRST_PAUSE
                    continue
            except (CdrsError, OSError, ValueError) as error:
                logger.debug("%s cannot be reached: %s", peer.member.key, error)
                if isinstance(error, LinkBroken):
                    self._membership.break_link(peer.member.key)
            finally:
                if link is not None:
                    await _close(link)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _may_try(self, peer: _Peer) -> bool:
        if self._is_stale or peer.seeded:
            return True  # no beat can be seen: the node's own answer has to do
        return peer.state is not NodeState.DEAD and (peer.broken_at is None or peer.beat > peer.broken_at)

    async def _reach(self, peer: _Peer, link: NodeLink) -> bool:
        """Ask the node who it is; if it may serve, route to it until it is gone. False where it may not."""
        async with asyncio.timeout(self.settings.registry.dead_after):
            info = await link.info()
        if not self._accept(peer, info):
            return False
        handle = peer.handle = NodeHandle(peer.member, link)
        peer.broken_at, peer.strained = None, frozenset(info.strained)
        self._rank()
        try:
            while not await handle.wait_gone(to_tick(LOOK_INTERVAL, self.clock)):
                await self._look(peer, handle)
        finally:
            handle.leave()
        return True

    async def _look(self, peer: _Peer, handle: NodeHandle) -> None:
        """Ask a node how it fares. One that serves some partitions badly, though it lives, comes behind the others for
        these until it says that all is well again. Silence says nothing here: the detector judges that."""
        try:
            async with handle.attempt(self.settings.registry.dead_after):
                strained = frozenset((await handle.link.info()).strained)
        except LinkBroken:
            self.broken(handle)
            return
        except (CdrsError, TimeoutError) as error:
            logger.debug("%s does not say how it fares: %r", handle.key, error)
            return
        if strained != peer.strained:
            logger.warning("%s would rather not serve partitions %s", handle.key, sorted(strained) or "none")
            peer.strained = strained
            self._rank()

    def _accept(self, peer: _Peer, info: NodeInfo) -> bool:
        """Whether a node serves the log that this gateway follows. The highest ordinal wins."""
        refusal = ""
        if (info.node, info.incarnation) != (peer.member.id, peer.member.incarnation):
            refusal = f"{info.node}/{info.incarnation} answers at its address"
        elif self._info is None or info.epoch.ordinal > self._info.epoch.ordinal:
            self._adopt(info)
        elif info.epoch != self._info.epoch:
            refusal = f"it serves epoch {info.epoch}, the others {self._info.epoch}"
        elif info.partitions != self._info.partitions:
            refusal = f"it sees {info.partitions} partitions, the others {self._info.partitions}"
        if refusal and not peer.refused:
            logger.error("%s is left out of routing: %s", peer.member.key, refusal)
        peer.refused = bool(refusal)
        return not refusal

    def _adopt(self, info: NodeInfo) -> None:
        if self._info is not None:
            logger.error("%s serves epoch %s, newer than %s: following it", info.node, info.epoch, self._info.epoch)
            for peer in self._peers.values():
                self._drop(peer)
        self._info = info

    # --- ranking ------------------------------------------------------------------------------

    def _rank(self) -> None:
        """Bring the routes up to date, and look again when a move that has to wait is due."""
        if self._info is None:
            return
        now = self.clock.monotonic()
        for peer in self._peers.values():
            is_live = peer.handle is not None and peer.state is NodeState.LIVE
            peer.live_since = (peer.live_since or now) if is_live else None
        entries = [
            (peer.handle, peer.state, peer.live_since) for peer in self._peers.values() if peer.handle is not None
        ]
        strained = {peer.member.key: peer.strained for peer in self._peers.values() if peer.strained}
        changed, due = self._table.update(now, self._info.partitions, entries, strained)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due < WATCH_INTERVAL and self._tasks is not None:
            self._timer = asyncio.get_running_loop().call_later(due, self._rank)
        if changed:
            for watch in self._watches:
                watch.ring()


async def _close(link: NodeLink) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await link.close()
    except (CdrsError, OSError) as error:
        logger.debug("closing a link: %s", error)
