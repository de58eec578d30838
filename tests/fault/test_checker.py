"""The judge is judged: valid histories pass, and each kind of damage fails under its own name."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from faults.checker import RULES, check, matches
from faults.figures import figures
from faults.history import Actor, merged, read_folder
from hypothesis import given, settings
from hypothesis import strategies as st

Record = dict[str, Any]
EPOCH = "1-00000007"


class World:
    """A small true history: a log, producers that settle each request before the next, subscribers that are cut."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.records: list[Record] = []
        self.partitions = self.random.randint(1, 3)
        self.streams = {f"s.{n}": self.random.randrange(self.partitions) for n in range(self.random.randint(1, 4))}
        self.log: list[list[Record]] = [[] for _ in range(self.partitions)]
        self.clock = 0
        self._op = 0
        self._produce(self.random.randint(8, 30))
        for n in range(self.random.randint(1, 3)):
            self._subscribe(f"sub{n}")
        for lane in self.log:
            for kept in lane:
                self._write("store", "dump", **{k: kept[k] for k in ("stream", "source", "id", "sha", "position")})

    def _write(self, kind: str, actor: str, **fields: Any) -> None:
        self.clock += self.random.randint(1, 1000)
        self.records.append({"type": kind, "actor": actor, "t": self.clock, **copy.deepcopy(fields)})

    def _produce(self, requests: int) -> None:
        for number in range(requests):
            actor = f"producer{number % 3}"
            stream = self.random.choice(list(self.streams))
            events = [
                {"stream": stream, "source": "/w", "id": f"{actor}-{number}-{i}", "key": None, "sha": f"h{number}.{i}"}
                for i in range(self.random.randint(1, 3))
            ]
            stored = False
            while True:
                self._op += 1
                for event in events:
                    self._write("invoke", actor, op=self._op, **event)
                outcome = self.random.choices(["ok", "fail", "info", "stored-info"], [6, 1, 1, 1])[0]
                duplicate = stored
                if outcome in ("ok", "stored-info") and not stored:
                    stored = True
                    self._append(stream, events)
                for event in events:
                    named = {k: event[k] for k in ("stream", "source", "id")}
                    if outcome == "ok":
                        place = next(r["position"] for r in self.log[self.streams[stream]] if r["id"] == event["id"])
                        self._write("ok", actor, op=self._op, **named, position=place, duplicate=duplicate)
                    else:
                        self._write(outcome.removeprefix("stored-"), actor, op=self._op, **named, why="x")
                if outcome == "ok" or self.random.random() < 0.2:
                    break

    def _append(self, stream: str, events: list[Record]) -> None:
        partition = self.streams[stream]
        lane = self.log[partition]
        offset = lane[-1]["position"][2] + self.random.choice((1, 1, 2)) if lane else 0  # stubs leave holes
        for event in events:
            lane.append({**event, "position": [EPOCH, partition, offset]})
            offset += 1

    def _subscribe(self, actor: str) -> None:
        at = {p: self.random.choice((0, 0, len(self.log[p]) // 2)) for p in range(self.partitions)}
        streams = ["s.*"] if self.random.random() < 0.5 else list(self.streams)[:2]
        vector = {p: self._offset(p, at[p]) for p in at}
        conn = 0
        self._write("open", actor, conn=conn, streams=streams, resume=None, epoch=EPOCH)
        self._write("cursor", actor, conn=conn, epoch=EPOCH, next=vector)
        if self.random.random() < 0.3:
            lost = self.random.randrange(self.partitions)
            stop = min(at[lost] + 2, len(self.log[lost]))
            self._write(
                "gap", actor, conn=conn, reason="retention", next={}, partition=lost,
                to=self._offset(lost, stop), **{"from": vector[lost]},
            )  # fmt: skip
            at[lost], vector[lost] = stop, self._offset(lost, stop)
        while any(at[p] < len(self.log[p]) for p in at):
            partition = self.random.choice([p for p in at if at[p] < len(self.log[p])])
            record = self.log[partition][at[partition]]
            at[partition] += 1
            vector[partition] = record["position"][2] + 1
            if any(matches(pattern, record["stream"]) for pattern in streams):
                named = {k: record[k] for k in ("stream", "source", "id", "sha", "position")}
                self._write("recv", actor, conn=conn, **named, next=vector)
            elif self.random.random() < 0.3:
                self._write("cursor", actor, conn=conn, epoch=EPOCH, next=vector)
            if self.random.random() < 0.1:
                self._write("end", actor, conn=conn, why="cut")
                conn += 1
                self._write("open", actor, conn=conn, streams=streams, resume=vector, epoch=EPOCH)
                self._write("cursor", actor, conn=conn, epoch=EPOCH, next=vector)

    def _offset(self, partition: int, index: int) -> int:
        lane = self.log[partition]
        if index < len(lane):
            return int(lane[index]["position"][2])
        return int(lane[-1]["position"][2]) + 1 if lane else 0

    # --- what damage needs --------------------------------------------------------------------

    def of(self, kind: str) -> list[Record]:
        return [record for record in self.records if record["type"] == kind]

    def neighbours(self) -> list[tuple[Record, Record]]:
        """Two events that one subscriber got from one partition, one after the other."""
        last: dict[tuple[str, int], Record] = {}
        found = []
        for record in self.of("recv"):
            lane = (record["actor"], record["position"][1])
            if lane in last:
                found.append((last[lane], record))
            last[lane] = record
        return found

    def pick(self, found: list[Any]) -> Any:
        return self.random.choice(found) if found else None

    def put(self, old: Record, new: Record | None) -> None:
        at = next(i for i, record in enumerate(self.records) if record is old)
        self.records[at : at + 1] = [] if new is None else [new]


def drop_received(world: World) -> str | None:
    pair = world.pick(world.neighbours())
    if pair is None:
        return None
    world.put(pair[0], None)
    return "gap"


def drop_last(world: World) -> str | None:
    last: dict[tuple[str, int], Record] = {}
    for record in world.of("recv"):
        last[record["actor"], record["position"][1]] = record
    chosen = world.pick(list(last.values()))
    if chosen is None:
        return None
    world.put(chosen, None)
    return "unseen"


def drop_stored(world: World) -> str | None:
    acked = {record["id"] for record in world.of("ok")}
    chosen = world.pick([record for record in world.of("store") if record["id"] in acked])
    if chosen is None:
        return None
    world.put(chosen, None)
    return "lost"


def drop_shown(world: World) -> str | None:
    seen = {record["id"] for record in world.of("recv")}
    chosen = world.pick([record for record in world.of("store") if record["id"] in seen])
    if chosen is None:
        return None
    world.put(chosen, None)
    return "un-shown"


def dup_received(world: World) -> str | None:
    chosen = world.pick(world.of("recv"))
    if chosen is None:
        return None
    at = next(i for i, record in enumerate(world.records) if record is chosen)
    world.records.insert(at + 1, copy.deepcopy(chosen))
    return "duplicate"


def dup_stored(world: World) -> str | None:
    chosen = world.pick(world.of("store"))
    if chosen is None:
        return None
    world.records.append({**chosen, "position": [EPOCH, chosen["position"][1], 10**6]})
    return "duplicate"


def swap_received(world: World) -> str | None:
    pair = world.pick(world.neighbours())
    if pair is None:
        return None
    first, second = pair
    one, two = copy.deepcopy(first), copy.deepcopy(second)
    world.put(first, {**two, "conn": one["conn"]})
    world.put(second, {**one, "conn": two["conn"]})
    return "order"


def swap_positions(world: World) -> str | None:
    """Two events of one request change places everywhere, as if the log had taken them in the wrong order."""
    by_op: dict[int, list[str]] = {}
    for record in world.of("ok"):
        by_op.setdefault(record["op"], []).append(record["id"])
    chosen = world.pick([ids for ids in by_op.values() if len(ids) > 1])
    if chosen is None:
        return None
    places = {r["id"]: r["position"] for r in world.of("store")}
    swapped = {chosen[0]: places[chosen[1]], chosen[1]: places[chosen[0]]}
    for record in world.records:
        if record["type"] in ("ok", "store") and record["id"] in swapped:
            record["position"] = swapped[record["id"]]
    return "key-order"


def alter_received(world: World) -> str | None:
    chosen = world.pick(world.of("recv"))
    if chosen is None:
        return None
    chosen["sha"] = "other"
    return "altered"


def alter_stored(world: World) -> str | None:
    chosen = world.pick(world.of("store"))
    if chosen is None:
        return None
    chosen["sha"] = "other"
    return "altered"


def shift_receipt(world: World) -> str | None:
    chosen = world.pick(world.of("ok"))
    if chosen is None:
        return None
    chosen["position"] = [*chosen["position"][:2], chosen["position"][2] + 1]
    return "inconsistent"


def shift_received(world: World) -> str | None:
    chosen = world.pick(world.of("recv"))
    if chosen is None:
        return None
    chosen["position"] = [*chosen["position"][:2], chosen["position"][2] + 1]
    return "inconsistent"


def shift_cursor(world: World) -> str | None:
    chosen = world.pick(world.of("recv"))
    if chosen is None:
        return None
    chosen["next"][chosen["position"][1]] += 1
    return "cursor"


def foreign_stream(world: World) -> str | None:
    chosen = world.pick(world.of("open"))
    if chosen is None or not any(record["actor"] == chosen["actor"] for record in world.of("recv")):
        return None
    for record in world.of("open"):
        if record["actor"] == chosen["actor"]:
            record["streams"] = ["t.>"]
    return "foreign"


def unsent(world: World) -> str | None:
    chosen = world.pick(world.of("store"))
    if chosen is None:
        return None
    for record in list(world.records):
        if record["type"] in ("invoke", "ok", "fail", "info") and record["id"] == chosen["id"]:
            world.put(record, None)
    return "phantom"


def refused(world: World) -> str | None:
    chosen = world.pick(world.of("store"))
    if chosen is None:
        return None
    for record in list(world.records):
        if record["type"] in ("ok", "info") and record["id"] == chosen["id"]:
            named = {k: record[k] for k in ("actor", "t", "op", "stream", "source", "id")}
            world.put(record, {"type": "fail", "why": "503", **named})
    return "aborted"


DAMAGE = [
    drop_received, drop_last, drop_stored, drop_shown, dup_received, dup_stored, swap_received, swap_positions,
    alter_received, alter_stored, shift_receipt, shift_received, shift_cursor, foreign_stream, unsent, refused,
]  # fmt: skip


@given(st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_a_valid_history_passes(seed: int) -> None:
    verdict = check(World(seed).records)
    assert verdict.ok, str(verdict)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_history_fails_under_the_right_name(damage: Any) -> None:
    tried = 0

    @given(st.integers(0, 2**32))
    @settings(max_examples=25, deadline=None)
    def judged(seed: int) -> None:
        nonlocal tried
        world = World(seed)
        name = damage(world)
        if name is not None:
            tried += 1
            verdict = check(world.records)
            assert name in verdict.names, f"expected {name}: {verdict}"

    judged()
    assert tried > 8


def test_object_versions_need_two_equal_copies() -> None:
    def version(*replicas: tuple[str, int]) -> Record:
        return {"type": "version", "actor": "dump", "t": 0, "name": "o", "number": 1, "sha": "a", "replicas": replicas}

    assert check([version(("a", 3))]).ok
    assert check([version(("a", 1))]).names == {"copies"}
    assert check([version(("a", 2), ("b", 1))]).names == {"copies"}


def test_figures_are_taken_from_receipts_and_faults() -> None:
    def at(ms: int, kind: str, **fields: Any) -> Record:
        return {"type": kind, "actor": fields.pop("actor", "p"), "t": ms * 1_000_000, **fields}

    named = {"stream": "s", "source": "/w"}
    records = []
    for op, (sent, acked) in enumerate([(0, 10), (20, 30), (35, 400), (410, 420)]):
        records.append(at(sent, "invoke", op=op, id=str(op), key=None, sha="h", **named))
        records.append(at(acked, "ok", op=op, id=str(op), position=[EPOCH, 0, op], duplicate=False, **named))
        records.append(at(500, "store", actor="dump", id=str(op), sha="h", position=[EPOCH, 0, op], **named))
    records.append(at(40, "fault", actor="nemesis", phase="start", name="F7", n=0, target="node-1"))
    records.append(at(90, "told", actor="nemesis", target="node-1", state="suspect"))
    others = [at(30, "recv", actor="sub"), at(340, "recv", actor="sub"), at(430, "recv", actor="sub")]
    others += [at(ms, "fail", why=why) for ms, why in ((30, 503), (60, 503), (70, "torn"), (80, 504))]
    (found,) = figures([[r for r in records if r["type"] != "store"], others])
    assert found == ("F7", "node-1", 0.05, 0.38, 0.36, 0.3, 2)
    assert check(records).ok
    assert check(records, limits={"failover": 0.3}).names == {"slow"}


def test_every_rule_has_a_damage_that_breaks_it() -> None:
    """So that no name stands in the table without having been seen."""
    shown = {"copies", "slow"}
    for damage in DAMAGE:
        shown |= {name for seed in range(40) if (name := damage(World(seed)))}
    assert shown == set(RULES)


def test_histories_survive_their_files(tmp_path: Path) -> None:
    actor = Actor("sub", tmp_path)
    actor.write("open", conn=0, streams=["s"], resume={3: 4}, epoch=EPOCH)
    actor.write("cursor", conn=0, epoch=EPOCH, next={3: 4})
    actor.close()
    assert read_folder(tmp_path) == merged([actor])
    (tmp_path / "torn.jsonl").write_text(json.dumps({"type": "ok"}) + "\n")
    with pytest.raises(ValueError, match=r"torn.jsonl line 1"):
        read_folder(tmp_path)
