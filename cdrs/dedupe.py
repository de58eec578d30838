"""The lane for logs that do not decide identity: look up, append, read the judgement back, and again what was void."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import chain

import msgspec

from cdrs.judgement import UNKNOWN, Judge, Kind, Verdict, body_hash
from cdrs.lane import Append, Batch, Lane, settle_duplicate
from cdrs.tasks import Wakeup
from shared.errors import OutcomeUnknown, StaleStream, Unavailable
from shared.ports import EventStore
from shared.records import Duplicate, Entry, NewEvent, Record, Settlement

ATTEMPTS = 8
"""How often an event that was judged void is looked up and appended again."""
REFUSED = settle_duplicate(Duplicate(-1, -1, 0, same_body=False))
UNTOLD = Settlement(
    problem=OutcomeUnknown.problem, detail="the event under this id is stored and could not be compared; repeat it"
)
BODIES = 8
"""Bodies under one identity in one batch that are compared with what is stored; all further ones are refused."""
JUDGED_WITHIN = 10.0
"""Longest wait for the tail after an append, in seconds; the next batch must not go before."""


class JudgedLane(Lane):
    """One batch is looked up, appended and judged before the next is begun, which keeps their order although any event
    may have to be appended again: within a batch only the last ones can be void, as their bases are equal."""

    def __init__(
        self,
        partition: int,
        append: Append,
        release: Callable[[int], None],
        *,
        judge: Callable[[], Judge],
        store: EventStore,
        window: int,
        strict: bool = False,
        knows: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """``strict``: refuse events while the store is away. ``knows``: whether a stream is in the log already, so that
        it need not be admitted by a store that is away."""
        super().__init__(partition, append, release)
        self._judge = judge
        self._history = store
        # What is appended at once must lie well within the window of its own look-up.
        self._piece = max(window // 4, 1)
        self._strict = strict
        self._knows = knows
        self._unsure: set[int] = set()
        """Slots of the current batch that the index alone has found absent."""
        self._has_appended = False
        """Whether anything of the current batch is in the log."""
        self._mine: dict[int, tuple[int, ...]] = {}
        """Slot of the current batch → the offsets at which this node has written it."""
        self._current: Batch | None = None
        self._again: list[int] = []
        self._judged = Wakeup()

    def observe(self, records: Sequence[Record], verdicts: Sequence[Verdict] | None) -> None:
        batch = self._current
        if batch is None or not batch.slots or verdicts is None:
            return
        for record, verdict in zip(records, verdicts, strict=True):
            slot = batch.slots.pop(record.identity, None)
            if slot is not None:
                self._read_back(batch, slot, record, verdict)
        if not batch.slots:
            self._judged.set()

    def _read_back(self, batch: Batch, slot: int, record: Record, verdict: Verdict) -> None:
        """A record with the identity of one of ours. Even if another node wrote it, it is where the event stands; see
        `_credit`."""
        if verdict.kind is Kind.VOID or verdict.first == UNKNOWN:
            self._again.append(slot)
        elif verdict.kind is Kind.VISIBLE:
            event = batch.events[slot]
            same = record.value == event.value and record.key == event.key
            entry = Duplicate(record.partition, record.offset, record.append_ms, same)
            settlement = settle_duplicate(entry)
            unsure = slot in self._unsure
            batch.fill(slot, msgspec.structs.replace(settlement, duplicate=False, window_only=unsure))
        else:
            # Its own copy and the original were both appended since the look-up; the index knows the original.
            self._again.append(slot)

    async def _settle(self, batch: Batch) -> None:
        first: dict[bytes, int] = {}
        for slot, event in enumerate(batch.events):
            first.setdefault(event.identity, slot)
        await self._admit(batch.events)
        self._current = batch
        self._unsure.clear()
        self._mine.clear()
        self._has_appended = False
        try:
            slots = list(first.values())
            for at in range(0, len(slots), self._piece):
                await self._settle_piece(batch, slots[at : at + self._piece])
        except Unavailable as error:
            if self._has_appended:
                raise OutcomeUnknown(error.detail, retry_after=error.retry_after) from error
            raise
        finally:
            self._current = None
            batch.slots = {}
        lost = [
            slot
            for slot, event in enumerate(batch.events)
            if first[event.identity] != slot and not self._settle_copy(batch, slot, first[event.identity])
        ]
        if lost:
            await self._settle_losers(batch, lost)
        batch.answer()
        self._over(batch)

    async def _admit(self, events: Sequence[NewEvent]) -> None:
        """Before anything of the batch is appended: the log knows no streams, so the store decides on spreads."""
        spreads: dict[str, int] = {}
        for event in events:
            if spreads.setdefault(event.stream, event.spread) != event.spread:
                raise StaleStream("events of one stream were routed by different spreads")
        try:
            await self._history.admit(spreads)
        except StaleStream:
            raise
        except (Unavailable, OutcomeUnknown) as error:
            if self._strict or not all(map(self._knows, spreads)):
                # A stream may exist now; an event does not.
                raise Unavailable(error.detail, retry_after=error.retry_after) from error

    async def _settle_piece(self, batch: Batch, todo: Sequence[int]) -> None:
        for attempt in range(ATTEMPTS):
            todo = await self._attempt(batch, todo, is_first=attempt == 0)
            if not todo:
                return
        raise OutcomeUnknown("the events were judged void again and again")

    async def _attempt(self, batch: Batch, todo: Sequence[int], *, is_first: bool) -> list[int]:
        """Append what is not in the log yet; returns those slots that need another attempt."""
        base = self._judge().next
        # The whole index first, then the store: what the index forgets meanwhile, the store holds by then.
        unknown = [slot for slot in todo if not self._find_in_index(batch, slot)]
        absent = await self._find_in_store(batch, unknown, is_first=is_first)
        if not absent:
            return []
        self._again = []
        batch.slots = {batch.events[slot].identity: slot for slot in absent}
        entries = await self._append(self.partition, [batch.events[slot] for slot in absent], base)
        self._has_appended = True
        await self._read_all(batch)
        self._credit(batch, absent, entries)
        return sorted(self._again)

    def _credit(self, batch: Batch, slots: Sequence[int], entries: Sequence[Entry]) -> None:
        """Where another node's record of the same event came before ours, it is that node's sender who stored it."""
        for slot, own in zip(slots, entries, strict=True):
            if not isinstance(own, int):
                continue
            mine = self._mine[slot] = (*self._mine.get(slot, ()), own)
            stored = batch.results[slot]
            if stored is not None and stored.offset >= 0 and stored.offset not in mine:
                batch.fill(slot, msgspec.structs.replace(stored, duplicate=True))

    async def _read_all(self, batch: Batch) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + JUDGED_WITHIN
        while batch.slots:
            left = deadline - loop.time()
            if left <= 0:
                raise OutcomeUnknown("the node's tail did not read the events back in time")
            await self._judged.wait(left)

    def _find_in_index(self, batch: Batch, slot: int) -> bool:
        event = batch.events[slot]
        seen = self._judge().lookup(event.identity)
        if seen is None or seen.first == UNKNOWN:
            return False
        same = seen.body == body_hash(event.key, event.value)
        self._fill_known(batch, slot, Duplicate(self.partition, seen.first, seen.append_ms, same))
        return True

    def _fill_known(self, batch: Batch, slot: int, entry: Duplicate) -> None:
        settlement = settle_duplicate(entry)
        if entry.partition == self.partition and entry.offset in self._mine.get(slot, ()):
            # It was this batch that wrote it, though a void copy was met first.
            settlement = msgspec.structs.replace(settlement, duplicate=False)
        batch.fill(slot, settlement)

    async def _find_in_store(
        self, batch: Batch, slots: Sequence[int], *, is_first: bool, is_strict: bool = False
    ) -> list[int]:
        """Settle what the store has, with one question for all; the slots that it has not. ``is_strict``: raise
        `Unavailable` where it cannot be asked, whatever the setting says.

        What the index of a young log lacks need not be asked for, unless it may stand in another partition."""
        asked = [slot for slot in slots if not (is_first and batch.events[slot].fresh)]
        if self._judge().is_complete:
            asked = [slot for slot in asked if batch.events[slot].spread > 1]
        if not asked:
            return list(slots)
        try:
            found = await self._history.lookup(self.partition, [batch.events[slot] for slot in asked])
        except Unavailable:
            if self._strict or is_strict:
                raise
            # What the index knows of, though not where, is stored: written again it would be a copy again and again.
            known = {slot for slot in asked if self._judge().lookup(batch.events[slot].identity) is not None}
            for slot in known:
                batch.fill(slot, UNTOLD)
            self._unsure.update(set(asked) - known)
            return [slot for slot in slots if slot not in known]
        for slot in asked:
            entry = found.get(batch.events[slot].identity)
            if entry is not None:
                self._fill_known(batch, slot, entry)
        return [slot for slot in slots if batch.events[slot].identity not in found]

    @staticmethod
    def _settle_copy(batch: Batch, slot: int, first: int) -> bool:
        """An identity that stands twice in one batch: the first place is stored, the others are its copies. False where
        another event is stored in their stead, which this copy may still be equal to."""
        original, copy = batch.events[first], batch.events[slot]
        stored = batch.results[first]
        assert stored is not None
        same = copy.value == original.value and copy.key == original.key
        if stored.problem and not same:
            return False
        if stored.problem:
            batch.fill(slot, stored)
        else:
            batch.fill(slot, settle_duplicate(Duplicate(stored.partition, stored.offset, stored.append_ms, same)))
        return True

    async def _settle_losers(self, batch: Batch, slots: Sequence[int]) -> None:
        """Copies of identities under which another event is stored: each is compared with that one. The same body is
        asked for once, and of an identity only so many bodies: nobody who means well sends more."""
        bodies: dict[bytes, dict[tuple[str | None, bytes], list[int]]] = {}
        for slot in slots:
            event = batch.events[slot]
            bodies.setdefault(event.identity, {}).setdefault((event.key, event.value), []).append(slot)
        for turn in range(BODIES):
            # In a turn each identity stands once, with its next body.
            equal = [list(each.values())[turn] for each in bodies.values() if turn < len(each)]
            await self._compare(batch, [first for first, *_ in equal])
            for first, *others in equal:
                for slot in others:
                    batch.fill(slot, batch.results[first] or REFUSED)
        for each in bodies.values():
            for slot in chain.from_iterable(list(each.values())[BODIES:]):
                batch.fill(slot, REFUSED)

    async def _compare(self, batch: Batch, slots: Sequence[int]) -> None:
        """Settle events of different identities that are stored, with these bodies or others. What else is in the batch
        may have been stored for it: where nothing can be told of these, only they suffer."""
        unknown = [slot for slot in slots if not self._find_in_index(batch, slot)]
        try:
            missing = await self._find_in_store(batch, unknown, is_first=False, is_strict=True) if unknown else []
        except (Unavailable, OutcomeUnknown):
            missing = unknown
        for slot in missing:
            batch.fill(slot, UNTOLD)
