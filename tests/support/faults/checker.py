"""The judge: from histories to a verdict, by rules C1 to C11. Pure; no line of the product is used.

Every rule has a name of its own, so that a test of the judge can say which one a damaged history must break:

========  =================  =========================================================================================
rule      name               broken when
========  =================  =========================================================================================
C1        lost               an acknowledged event is not in the final store
C1        unseen             it is, but a subscriber whose range covers it never got it (nothing later came either)
C2        phantom            something was stored or seen that nobody sent
C2        aborted            an event was stored or seen although every attempt was answered with "not stored"
C2        altered            its payload is another than the one sent
C3        duplicate          one event at two positions, or seen twice by one subscriber over all its connections
C4        inconsistent       one position with two events, or an event whose receipts, store and readers disagree
C5        order              positions of a partition do not rise strictly for one subscriber
C6        gap                a subscriber was given a later position but not this one, and no notice covers it
C6        cursor             a cursor claims more than was given, or another place than its own event's
C7        key-order          sent after the receipt of another (or behind it in one request), stored before it
C8        un-shown           a subscriber saw what the final store has not
C9        foreign            a subscriber got an event of a stream that it had not asked for
C10       copies             an acknowledged object version with fewer than two good copies, or with changed content
C11       slow               a figure is beyond its limit (only for limits that are given)
========  =================  =========================================================================================
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from faults.figures import Figures, figures

Record = dict[str, Any]
Event = tuple[str, str, str]
"""stream, source, id."""
Position = tuple[str, int, int]
"""epoch, partition, offset."""

RULES = {
    "lost": "C1", "unseen": "C1", "phantom": "C2", "aborted": "C2", "altered": "C2", "duplicate": "C3",
    "inconsistent": "C4", "order": "C5", "gap": "C6", "cursor": "C6", "key-order": "C7", "un-shown": "C8",
    "foreign": "C9", "copies": "C10", "slow": "C11",
}  # fmt: skip
EXAMPLES = 5
"""Violations of one name that are told in full."""


class Violation(NamedTuple):
    """One broken rule."""

    name: str
    detail: str

    def __str__(self) -> str:
        return f"{RULES.get(self.name, '-')} {self.name}: {self.detail}"


@dataclass
class Verdict:
    """What came out."""

    counts: Counter[str] = field(default_factory=Counter)
    """Violations by name."""
    examples: list[Violation] = field(default_factory=list)
    acknowledged: int = 0
    stored: int = 0
    seen: int = 0
    """Events given to subscribers, all together."""
    notices: int = 0

    @property
    def ok(self) -> bool:
        return not self.counts

    @property
    def names(self) -> set[str]:
        return set(self.counts)

    def add(self, name: str, detail: str) -> None:
        self.counts[name] += 1
        if self.counts[name] <= EXAMPLES:
            self.examples.append(Violation(name, detail))

    def __str__(self) -> str:
        head = (
            f"{self.acknowledged} events acknowledged, {self.stored} stored, {self.seen} given to subscribers, "
            f"{self.notices} notices: "
        )
        if self.ok:
            return head + "no rule broken"
        found = ", ".join(f"{count} x {name}" for name, count in self.counts.most_common())
        return "\n  ".join([head + found, *map(str, self.examples)])


def matches(pattern: str, stream: str) -> bool:
    """Whether a name or pattern (``*`` one token, ``>`` the rest) covers a stream."""
    tokens, names = pattern.split("."), stream.split(".")
    for at, token in enumerate(tokens):
        if token == ">":
            return len(names) > at
        if at >= len(names) or token not in ("*", names[at]):
            return False
    return len(tokens) == len(names)


def check(records: Iterable[Record], *, limits: Mapping[str, float] | None = None) -> Verdict:
    """Judge a whole run. Records of one actor must be in their order; actors may come in any order."""
    by_actor: dict[str, list[Record]] = defaultdict(list)
    store: list[Record] = []
    versions: list[Record] = []
    for record in records:
        if record["type"] == "store":
            store.append(record)
        elif record["type"] == "version":
            versions.append(record)
        else:
            by_actor[record["actor"]].append(record)
    verdict = Verdict(stored=len(store))
    sent = _Sent(by_actor)
    kept = _Kept(store, sent, verdict)
    sent.check(kept, verdict)
    for actor, own in by_actor.items():
        if any(record["type"] == "open" for record in own):
            _Reader(actor, own, sent, kept, verdict).check()
    _check_versions(versions, verdict)
    if limits:
        _check_limits(figures(by_actor.values()), limits, verdict)
    return verdict


def _event(record: Record) -> Event:
    return record["stream"], record["source"], record["id"]


def _position(record: Record) -> Position:
    epoch, partition, offset = record["position"]
    return epoch, partition, offset


class _Sent:
    """What producers did."""

    def __init__(self, by_actor: Mapping[str, Sequence[Record]]) -> None:
        self.sha: dict[Event, set[str]] = defaultdict(set)
        self.receipts: dict[Event, set[Position]] = defaultdict(set)
        self.attempts: Counter[Event] = Counter()
        self.refused: Counter[Event] = Counter()
        self.after: dict[Event, list[tuple[Event, str]]] = defaultdict(list)
        """Event → those it must stand behind, and why."""
        for own in by_actor.values():
            self._walk(own)

    def _walk(self, own: Sequence[Record]) -> None:
        last_acked: dict[tuple[str, str | None], Event] = {}
        requests: dict[Any, dict[tuple[str, str | None], list[Event]]] = {}
        acked_by: dict[Any, set[Event]] = defaultdict(set)
        keys: dict[Event, tuple[str, str | None]] = {}
        for record in own:
            kind = record["type"]
            if kind == "invoke":
                event = _event(record)
                lane = keys.setdefault(event, (record["stream"], record.get("key")))
                if event not in self.attempts and lane in last_acked:
                    self.after[event].append((last_acked[lane], "sent after its receipt"))
                self.attempts[event] += 1
                self.sha[event].add(record["sha"])
                requests.setdefault(record["op"], {}).setdefault(lane, []).append(event)
            elif kind == "ok":
                event = _event(record)
                self.receipts[event].add(_position(record))
                acked_by[record["op"]].add(event)
                # Of several acknowledged at once, the one that stands last in its request.
                last_acked[keys[event]] = event
            elif kind == "fail":
                self.refused[_event(record)] += 1
        for op, lanes in requests.items():
            for events in lanes.values():
                both = [event for event in dict.fromkeys(events) if event in acked_by[op]]
                for first, second in pairwise(both):
                    self.after[second].append((first, "behind it in one request"))

    def was_sent(self, event: Event) -> bool:
        return event in self.attempts

    def was_refused(self, event: Event) -> bool:
        """Whether every attempt promised that nothing was stored."""
        return event not in self.receipts and self.attempts[event] == self.refused[event]

    def check(self, kept: _Kept, verdict: Verdict) -> None:
        verdict.acknowledged = len(self.receipts)
        for event, places in self.receipts.items():
            if len(places) > 1:
                verdict.add("inconsistent", f"{event}: receipts name {sorted(places)}")
            stands = kept.places.get(event)
            if stands is None:
                verdict.add("lost", f"{event} was acknowledged at {sorted(places)} and is not in the store")
            elif not places & set(stands):
                verdict.add("inconsistent", f"{event}: receipt says {sorted(places)}, the store {stands}")
        for event, behind in self.after.items():
            mine = kept.places.get(event)
            for other, why in behind:
                theirs = kept.places.get(other)
                if mine and theirs and mine[0][:2] == theirs[0][:2] and mine[0] <= theirs[0]:
                    verdict.add("key-order", f"{event} at {mine[0]}, {other} at {theirs[0]}: {why}")


class _Kept:
    """The final store."""

    def __init__(self, store: Sequence[Record], sent: _Sent, verdict: Verdict) -> None:
        self.places: dict[Event, list[Position]] = {}
        self.at: dict[Position, Record] = {}
        self.partitions: dict[tuple[str, int], list[Record]] = defaultdict(list)
        for record in store:
            event, position = _event(record), _position(record)
            other = self.at.get(position)
            if other is not None:
                verdict.add("inconsistent", f"the store has {_event(other)} and {event} at {position}")
                continue
            self.at[position] = record
            self.partitions[position[:2]].append(record)
            places = self.places.setdefault(event, [])
            places.append(position)
            if len(places) > 1:
                verdict.add("duplicate", f"{event} is stored at {places}")
            _check_origin(event, record["sha"], f"the store at {position}", sent, verdict)
        for each in self.partitions.values():
            each.sort(key=lambda record: record["position"][2])


def _check_origin(event: Event, sha: str, where: str, sent: _Sent, verdict: Verdict) -> None:
    if not sent.was_sent(event):
        verdict.add("phantom", f"{where}: {event} was never sent")
    elif sent.was_refused(event):
        verdict.add("aborted", f"{where}: {event} was refused every time")
    elif sha not in sent.sha[event]:
        verdict.add("altered", f"{where}: {event} has {sha}, sent were {sorted(sent.sha[event])}")


class _Reader:
    """One subscriber over all its connections."""

    def __init__(self, actor: str, own: Sequence[Record], sent: _Sent, kept: _Kept, verdict: Verdict) -> None:
        self._actor = actor
        self._own = own
        self._sent = sent
        self._kept = kept
        self._verdict = verdict
        self._streams: list[str] = []
        self._wanted: dict[str, bool] = {}
        self._from: dict[tuple[str, int], int] = {}
        """Where each partition's range begins."""
        self._last: dict[tuple[str, int], int] = {}
        self._given: set[Position] = set()
        self._events: set[Event] = set()
        self._excused: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
        self._claims: list[tuple[tuple[str, int], int, int]] = []
        """(partition, next offset claimed, how many events had been given before)."""
        self._given_when: dict[Position, int] = {}

    def check(self) -> None:
        for record in self._own:
            kind = record["type"]
            if kind == "open":
                self._streams = record["streams"]
                self._wanted.clear()
            elif kind == "cursor":
                self._cursor(record["epoch"], record["next"])
            elif kind == "gap":
                self._gap(record)
            elif kind == "recv":
                self._receive(record)
        self._check_holes()
        self._check_claims()

    def _is_wanted(self, stream: str) -> bool:
        known = self._wanted.get(stream)
        if known is None:
            known = self._wanted[stream] = any(matches(pattern, stream) for pattern in self._streams)
        return known

    def _cursor(self, epoch: str, vector: Mapping[int, int]) -> None:
        for partition, offset in vector.items():
            lane = (epoch, partition)
            if lane not in self._from:
                self._from[lane] = offset
            else:
                self._claims.append((lane, offset, len(self._given_when)))

    def _gap(self, record: Record) -> None:
        self._verdict.notices += 1
        lanes = [lane for lane in self._from if record.get("partition") in (None, lane[1])]
        for lane in lanes:
            # As they are told: offsets are strings there.
            start = int(record["from"]) if record.get("from") is not None else 0
            stop = int(record["to"]) if record.get("to") is not None else record.get("next", {}).get(lane[1], 2**62)
            self._excused[lane].append((start, stop))

    def _receive(self, record: Record) -> None:
        verdict = self._verdict
        verdict.seen += 1
        event, position = _event(record), _position(record)
        lane, offset = position[:2], position[2]
        where = f"{self._actor} connection {record['conn']} at {position}"
        _check_origin(event, record["sha"], where, self._sent, verdict)
        if not self._is_wanted(record["stream"]):
            verdict.add("foreign", f"{where}: {event}, asked for {self._streams[:5]}")
        stands = self._kept.at.get(position)
        if event not in self._kept.places:
            verdict.add("un-shown", f"{where}: {event} is not in the store at the end")
        elif stands is None or _event(stands) != event:
            there = _event(stands) if stands is not None else "nothing"
            verdict.add("inconsistent", f"{where}: {event}, but the store has {there} there")
        if event in self._events or position in self._given:
            verdict.add("duplicate", f"{where}: {event} came again")
        elif offset <= self._last.get(lane, -1):
            verdict.add("order", f"{where}: behind {self._last[lane]}")
        own_next = record["next"].get(position[1])
        if own_next is not None and own_next != offset + 1:
            verdict.add("cursor", f"{where}: its id says that {own_next} is next")
        self._events.add(event)
        self._given.add(position)
        self._last[lane] = max(self._last.get(lane, -1), offset)
        self._given_when[position] = len(self._given_when) + 1
        self._cursor(position[0], {p: o for p, o in record["next"].items() if p != position[1]})
        self._from.setdefault(lane, offset)

    def _is_excused(self, lane: tuple[str, int], offset: int) -> bool:
        return any(start <= offset < stop for start, stop in self._excused.get(lane, ()))

    def _expected(self, lane: tuple[str, int]) -> list[Record]:
        start = self._from[lane]
        return [
            record
            for record in self._kept.partitions.get(lane, [])
            if record["position"][2] >= start
            and self._is_wanted(record["stream"])
            and not self._is_excused(lane, record["position"][2])
        ]

    def _check_holes(self) -> None:
        for lane in self._from:
            last = self._last.get(lane, -1)
            for record in self._expected(lane):
                position = _position(record)
                if position in self._given:
                    continue
                name = "gap" if position[2] < last else "unseen"
                self._verdict.add(name, f"{self._actor} never got {_event(record)} at {position}")

    def _check_claims(self) -> None:
        """A cursor must not claim what had not been given when it was sent."""
        expected = {
            lane: [(r["position"][2], self._given_when.get(_position(r))) for r in self._expected(lane)]
            for lane in self._from
        }
        reached: dict[tuple[str, int], int] = {}
        for lane, claimed, given in self._claims:
            places = expected.get(lane, [])
            at = reached.get(lane, 0)
            while at < len(places) and places[at][0] < claimed:
                offset, when = places[at]
                if when is not None and when > given:
                    self._verdict.add(
                        "cursor", f"{self._actor}: a cursor said {claimed} for {lane}, {offset} had not been given"
                    )
                at += 1
            reached[lane] = at


def _check_versions(versions: Sequence[Record], verdict: Verdict) -> None:
    for record in versions:
        good = sum(copies for sha, copies in record["replicas"] if sha == record["sha"])
        bad = [sha for sha, _ in record["replicas"] if sha != record["sha"]]
        if good < 2 or bad:
            verdict.add("copies", f"{record['name']} version {record['number']}: {good} good copies, others {bad}")


def _check_limits(found: Sequence[Figures], limits: Mapping[str, float], verdict: Verdict) -> None:
    """``limits``: ``detection``, ``failover`` or ``gap`` → seconds."""
    for each in found:
        for name, limit in limits.items():
            value = getattr(each, name)
            if value is not None and value > limit:
                verdict.add("slow", f"{each.name}: {name} {value:.3f} s, limit {limit:g} s")
