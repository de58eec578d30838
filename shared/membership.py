"""Membership: every process adds itself to the registry, beats, reads the others' beats and keeps a picture of them.

The registry is a hint. When it cannot be reached the last picture holds and says ``stale``; nothing waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import zlib
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack
from typing import Any, TypeVar
from weakref import WeakSet

import msgspec

from shared.cancelling import to_the_end
from shared.clock import Clock, to_tick
from shared.detector import Detector, NodeState
from shared.errors import CdrsError, Unavailable
from shared.member_changes import Change, Subscription, kind_of
from shared.member_states import Since, StateTimes
from shared.ports import Beat, ChangeSource, Explaining, Member, NodeRegistry
from shared.process_usage import ProcessUsage
from shared.settings import Settings

T = TypeVar("T")

SET_INTERVAL = 1.0
"""Seconds between two reads of the set; it is read at once when the beats name a stranger or somebody's vanished."""
EVENT_PAUSE = 0.05
"""Seconds between a registry's word that its set has changed and the read of it: many changes, one read."""
REJOIN_GRACE = 5.0
"""Seconds after the registry lost us in which it may lack others too: who is missing has not left."""
RETURN_TIME = 2.5
"""Seconds of these in which nobody's silence counts: some find a cluster that was away sooner than others."""
MAX_DETAIL = 500
"""Characters of each reason to wait that a beat carries."""
ALONE_AFTER, ALONE_FACTOR, ALONE_MOST = 10.0, 2, 1.0
"""Where only this process has beaten for so many seconds (of several that start, each is alone at first), the next beat
is so many times as far, if that is at most so many seconds."""
REAP_FACTOR = 10
"""Somebody dead for so many times ``dead_after`` is taken out of the set by whoever sees it."""

logger = logging.getLogger(__name__)


class Load(msgspec.Struct, frozen=True):
    """How busy a process is, as it says itself with each beat."""

    in_flight: int = 0
    """Handoffs (node) or events without receipt (gateway)."""
    ewma_ms: float = 0.0
    """Smoothed time to settle a handoff."""
    lag_records: int = 0
    """How far its tail is behind the log."""
    connections: int = 0
    """Open feeds (node) or event streams (gateway)."""
    partitions: int = 0
    """Partitions it tails (node) or follows (gateway)."""
    waits: Mapping[str, str] = {}
    """What it lacks before it can serve: name → what was tried."""


class MemberView(msgspec.Struct, frozen=True):
    """One process as this one sees it."""

    member: Member
    beat: Beat | None
    """Its last beat; None before the first."""
    state: NodeState
    age_ms: int
    """Milliseconds since it was last heard, or since it was first expected."""
    since: Since
    """Since when it is in this state."""
    in_set: bool
    in_heartbeats: bool


class Picture(msgspec.Struct, frozen=True):
    """All processes as this one sees them."""

    as_of_ms: int
    """When the registry was last read with success; milliseconds since 1970, 0 = never."""
    registry: str
    """ok, or stale while it cannot be reached."""
    members: dict[str, MemberView]
    """By `Member.key`, sorted by it."""


class Membership:
    """This process among the others."""

    def __init__(
        self,
        registry: NodeRegistry,
        settings: Settings,
        clock: Clock,
        me: Member,
        load: Callable[[], Load],
        *,
        watches: bool = True,
        beside: Membership | None = None,
        on_change: Callable[[NodeState, float], None] | None = None,
    ) -> None:
        """``watches`` False: join, beat and stay in the set, but leave it to another membership of this process to look
        at the others; the picture then shows nobody else. ``beside``: that other one. ``on_change``: told of each new
        state of another process that was ever heard, and how many seconds it took (`Since.took_ms`)."""
        self.me = me
        self._on_change = on_change
        self._watches = watches
        self._ours: set[str] = set() if beside is None else beside._ours
        """Keys of this process's memberships."""
        self._ours.add(me.key)
        self._phase: float = zlib.crc32(me.key.encode()) / 2**32 if beside is None else beside._phase
        """Of its ticks: one in a process, whatever the clock."""
        self.draining = False
        """Set it to tell the others, with the next beat, that this process is about to leave."""
        self._registry = registry
        self._settings = settings.registry
        self._clock = clock
        self._load = load
        self._usage = ProcessUsage(clock)
        self._detector = Detector(
            me.key,
            interval=self._settings.beat_interval,
            suspect_after=self._settings.suspect_after,
            dead_after=self._settings.dead_after,
        )
        self._seq = 0
        self._joined = False
        self._alone_since = math.inf
        """Since when only this process beats."""
        self._is_ok = False
        self._trouble = ""
        """Why the registry could not be reached, as last said."""
        self._as_of_ms = 0
        self._set_read_at = float("-inf")
        self._rejoined_at = float("-inf")
        self._own_beat: Beat | None = None
        self._set: dict[str, Member] = {}
        self._beats: Mapping[str, Beat] = {}
        self._known: dict[str, Member] = {me.key: me}
        self._last: dict[str, Beat] = {}
        self._states: dict[str, NodeState] = {me.key: NodeState.LIVE}
        self._times = StateTimes(clock)
        self._turned = clock.monotonic()
        """When the registry was last lost or found."""
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._set_changed = asyncio.Event()

    # --- what others read ---------------------------------------------------------------------

    @property
    def picture(self) -> Picture:
        """Everybody, as of now. Made anew with each call."""
        members = {key: self._view(key) for key in sorted(self._known)}
        return Picture(self._as_of_ms, "ok" if self._is_ok else "stale", members)

    @property
    def trouble(self) -> str:
        """Why the registry cannot be read, and what was tried; empty while it can."""
        if self._is_ok:
            return ""
        detail = self._registry.detail if isinstance(self._registry, Explaining) else ""
        return detail or self._trouble or "not read yet"

    def _view(self, key: str) -> MemberView:
        mine = key == self.me.key
        age = 0.0 if mine else max(self._clock.monotonic() - self._detector.seen(key), 0.0)
        return MemberView(
            member=self._known[key],
            beat=self._own_beat if mine else self._last.get(key),
            state=self._state(key),
            age_ms=round(age * 1000),
            since=self._times.of(key),
            in_set=key in self._set,
            in_heartbeats=key in self._beats,
        )

    def _state(self, key: str) -> NodeState:
        if key == self.me.key:
            return NodeState.DRAINING if self.draining else NodeState.LIVE
        return self._detector.state(key)

    def subscribe(self, *, loads: bool = True) -> Subscription:
        """Follow the changes from now on. Without ``loads``, beats that change nothing but figures are left out; a
        suspect that is live again still counts as a ``load``."""
        subscription = Subscription(loads=loads)
        self._subscriptions.add(subscription)
        return subscription

    def break_link(self, key: str) -> None:
        """A connection to this process broke: suspect at once, until it is heard of again. Unknown keys are ignored."""
        self._detector.break_link(key)
        self._publish()

    # --- the loop -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Join, beat and read until cancelled; then leave the set."""
        with ExitStack() as stack:
            if isinstance(self._registry, ChangeSource):
                stack.callback(self._registry.on_change(self._set_changed.set))
            if self._may_spare_beats:  # who was alone until now has not heard of us yet
                self._detector.spare(self._clock.monotonic() + self._settings.beat_interval * (ALONE_FACTOR + 1))
            try:
                while True:
                    await self._tick()
                    pause = to_tick(self._pace, self._clock, phase=self._phase)
                    await self._idle(self._clock.monotonic() + pause)
            finally:
                await to_the_end(self._leave())

    @property
    def _pace(self) -> float:
        """Seconds from one beat to the next. Where nobody listens, every other one is left out: who comes bears with it
        (see `run`), and with its first beat we are as fast as ever."""
        every = self._settings.beat_interval
        is_alone = self._clock.monotonic() - self._alone_since >= ALONE_AFTER
        return every * ALONE_FACTOR if is_alone and self._may_spare_beats else every

    @property
    def _may_spare_beats(self) -> bool:
        every, dead_after = self._settings.beat_interval, self._settings.dead_after
        return every * ALONE_FACTOR <= ALONE_MOST and every * (ALONE_FACTOR + 1) <= dead_after

    async def _idle(self, until: float) -> None:
        """Wait for the time of the next beat. Read the set at once when the registry says that it changed: to know who
        came and left, not who is silent, so this is no read that counts for the detector."""
        while (left := until - self._clock.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._set_changed.wait()
            except TimeoutError:
                return
            await asyncio.sleep(min(left, EVENT_PAUSE))
            self._set_changed.clear()
            try:
                await self._read_set(await self._call(self._registry.beats()))
            except (CdrsError, OSError) as error:
                logger.debug("the set could not be read at once: %s", error)  # the next beat says so aloud
            self._publish()

    async def _tick(self) -> None:
        try:
            beats = await self._beat()
            is_alone = self._ours.issuperset(beats)
            self._alone_since = min(self._alone_since, self._clock.monotonic()) if is_alone else math.inf
            if not self._watches:
                await self._stay()
                return
            if self._is_set_due(beats):
                await self._read_set(beats)
            self._take(beats)
            self._turn(ok=True)
        except (CdrsError, OSError) as error:
            if self._is_ok or str(error) != self._trouble:
                self._trouble = str(error)
                logger.warning("the registry cannot be reached, the last picture holds: %s", error)
            self._alone_since = math.inf
            self._turn(ok=False)
        self._publish()

    async def _stay(self) -> None:
        """Join again where the registry lost this process."""
        if self._clock.monotonic() - self._set_read_at >= SET_INTERVAL:
            members = await self._call(self._registry.members())
            self._set_read_at = self._clock.monotonic()
            self._joined = any(member.key == self.me.key for member in members)
        self._turn(ok=True)

    async def _call(self, call: Coroutine[Any, Any, T], *, calls: int = 1) -> T:
        seconds = self._settings.timeout * calls
        try:
            async with asyncio.timeout(seconds):
                return await call
        except TimeoutError as error:
            raise Unavailable(f"no answer within {seconds} s") from error

    async def _beat(self) -> Mapping[str, Beat]:
        if not self._joined:
            await self._call(self._registry.join(self.me))
            self._joined = True
            self._set_read_at = float("-inf")
        self._seq += 1
        load, (cpu, memory) = self._load(), self._usage.sample()
        self._own_beat = Beat(
            seq=self._seq,
            state=self._state(self.me.key).value,
            cpu=cpu,
            memory_bytes=memory,
            in_flight=load.in_flight,
            ewma_ms=round(load.ewma_ms, 3),
            lag_records=load.lag_records,
            connections=load.connections,
            partitions=load.partitions,
            waits={name: detail[:MAX_DETAIL] for name, detail in load.waits.items()},
        )
        return await self._call(self._registry.beat(self.me.key, self._own_beat), calls=2)  # to write, and to read

    def _is_set_due(self, beats: Mapping[str, Beat]) -> bool:
        if self._clock.monotonic() - self._set_read_at >= SET_INTERVAL:
            return True
        is_strange = any(key not in self._set for key in beats)
        return is_strange or any(key not in beats for key in self._beats)

    async def _read_set(self, beats: Mapping[str, Beat]) -> None:
        members = await self._call(self._registry.members())
        now = self._set_read_at = self._clock.monotonic()
        self._set = {member.key: member for member in members}
        for key, member in self._set.items():
            if self._known.get(key, member) != member:  # it was nameless until now
                self._tell(Change("join", key))
        self._known.update(self._set)
        self._detector.expect(now, self._set)
        if self.me.key not in self._set:
            logger.warning("the registry lost this process; joining again")
            self._rejoined_at = now
            self._detector.spare(now + RETURN_TIME)
            self._joined = False
        elif now - self._rejoined_at > REJOIN_GRACE:
            self._forget_leavers(beats)
        await self._reap(now)

    def _forget_leavers(self, beats: Mapping[str, Beat]) -> None:
        for key in [key for key in self._known if key not in self._set and key not in beats and key != self.me.key]:
            del self._known[key]
            self._last.pop(key, None)
            self._detector.forget(key)

    async def _reap(self, now: float) -> None:
        patience = REAP_FACTOR * self._settings.dead_after
        for key in [key for key in self._set if self._detector.dead_for(now, key) > patience]:
            logger.info("%s has been dead for more than %.0f s; taking it out of the registry", key, patience)
            await self._call(self._registry.leave(self._set.pop(key)))

    def _take(self, beats: Mapping[str, Beat]) -> None:
        draining = {key for key, beat in beats.items() if beat.state == NodeState.DRAINING}
        seqs = {key: beat.seq for key, beat in beats.items()}
        self._detector.observe(self._clock.monotonic(), seqs, draining=draining)
        for key, beat in beats.items():
            if key not in self._known:
                # It beats but stands in no set that was read: shown to operators, and routed to by nobody.
                self._known[key] = Member.nameless(key)
            before = self._last.get(key)
            self._last[key] = beat
            if before is not None and not _is_same_load(before, beat):
                self._tell(Change("load", key), is_load=True)
        self._beats = beats
        self._as_of_ms = self._clock.unix_ms()

    def _turn(self, *, ok: bool) -> None:
        if ok != self._is_ok:
            now, self._is_ok = self._clock.monotonic(), ok
            if ok and self._trouble:
                logger.info("the registry is read again, after %.1f s", now - self._turned)
            self._turned = now
            self._tell(Change("registry", ""))

    # --- changes ------------------------------------------------------------------------------

    def _publish(self) -> None:
        """Tell subscribers how the states differ from those they were told of."""
        states = {key: self._state(key) for key in self._known}
        if states == self._states:
            return
        before, self._states = self._states, states
        for key in before.keys() - states.keys():
            self._tell(Change("leave", key))
            self._times.left(key)
        for key, state in states.items():
            if before.get(key) is not state:
                self._tell(Change(kind_of(before.get(key), state), key))
                if key != self.me.key:
                    self._note(key, before.get(key), state)

    def _note(self, key: str, before: NodeState | None, state: NodeState) -> None:
        seconds = self._times.changed(key, before, state, self._detector.seen(key))
        if self._on_change is not None and key in self._last:
            self._on_change(state, seconds)

    def _tell(self, change: Change, *, is_load: bool = False) -> None:
        for subscription in self._subscriptions:
            if subscription.loads or not is_load:
                subscription.put(change)

    async def _leave(self) -> None:
        try:
            await self._call(self._registry.leave(self.me))
        except (CdrsError, OSError) as error:
            if self._joined:
                logger.warning("could not leave the registry, others will clean up: %s", error)


def _is_same_load(before: Beat, beat: Beat) -> bool:
    return before == beat or before == msgspec.structs.replace(beat, seq=before.seq)
