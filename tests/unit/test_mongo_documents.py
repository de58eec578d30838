"""Keys, documents and the sharding plan of the MongoDB store, without a server."""

from __future__ import annotations

import json
import random

import pytest
from bson import decode, encode, json_util
from new_events import event

from shared.backends.mongo.documents import (
    SHARD_KEYS,
    documents_of,
    holes,
    offset_of,
    partition_key,
    partition_of_key,
    position_key,
    record_of,
    stream_info,
    tally,
)
from shared.backends.mongo.sharding import as_shell, is_targeted, shard_plan
from shared.backends.mongo.spreads import SpreadCache
from shared.errors import StaleStream
from shared.position import MAX_OFFSET, Epoch, Position
from shared.records import FeedBatch, Record, fingerprint

EPOCH = Epoch(1, 0x9F3A22C1)


def record(offset: int, *, key: str | None = None, stream: str = "orders") -> Record:
    e = event(str(offset), key=key, stream=stream)
    return Record(3, offset, 1000 + offset, e.identity, e.stream, e.key, e.value, e.data_at, int(e.kind), e.accepted_ms)


def test_ids_have_16_bytes_and_sort_as_positions_do() -> None:
    rng = random.Random(5)
    positions = [
        Position(Epoch(rng.choice((1, 2, 999_999_999)), rng.getrandbits(32)), rng.randrange(48), offset)
        for offset in (0, 1, 255, 256, 65_535, 2**32, MAX_OFFSET)
        for _ in range(20)
    ]
    keys = {p: position_key(partition_key(p.epoch, p.partition), p.offset) for p in positions}
    assert {len(key) for key in keys.values()} == {16}
    assert sorted(positions) == sorted(positions, key=keys.__getitem__)
    for position, key in keys.items():
        assert (partition_of_key(key), offset_of(key)) == (position.partition, position.offset)


def test_a_batch_has_a_document_for_each_offset() -> None:
    key = partition_key(EPOCH, 3)
    records = [record(2, key="k"), record(3), record(6)]
    documents = documents_of(key, FeedBatch(3, 1, 9, records))
    assert [offset_of(document["_id"]) for document in documents] == list(range(1, 9))
    read = [record_of(decode(encode(document))) for document in documents]
    assert read == [None, records[0], records[1], None, None, records[2], None, None]


def test_fingerprints_tell_keys_and_values_apart() -> None:
    given = [(None, b"kv"), ("k", b"v"), ("kv", b""), ("", b"kv"), ("v", b"k"), (None, b"k"), (None, b"k\x00v")]
    assert len({fingerprint(key, value) for key, value in given}) == len(given)
    assert all(-(2**63) <= fingerprint(*one) < 2**63 for one in given)


@pytest.mark.parametrize(
    ("offsets", "missing"),
    [([3, 4, 5, 6], []), ([], [(3, 7)]), ([4, 6], [(3, 4), (5, 6)]), ([3, 4], [(5, 7)]), ([6], [(3, 6)])],
)
def test_holes(offsets: list[int], missing: list[tuple[int, int]]) -> None:
    assert holes(offsets, 3, 7) == missing


def test_a_tally_keeps_what_each_stream_gets() -> None:
    found = tally([record(5, stream="a"), record(6, stream="b"), record(9, stream="a")])
    assert {name: (one.offsets, one.first_ms, one.last_ms) for name, one in found.items()} == {
        "a": ([5, 9], 1005, 1009),
        "b": ([6], 1006, 1006),
    }


def test_a_stream_counts_every_epoch_and_shows_this_ones_offsets() -> None:
    counts = {"p1": {"n": 3, "o": 9, "t": 50}, "old": {"n": 4, "o": 70, "t": 20}, "p0": {"n": 1, "o": 2, "t": 40}}
    info = stream_info({"_id": "s", "spread": 2, "created": 7, "c": counts}, {"p0": 0, "p1": 1})
    assert (info.events, info.last_ms, info.last, info.created_ms) == (8, 50, {0: 2, 1: 9}, 7)


class TestSpreads:
    def test_known_ones_are_checked_unknown_ones_named(self) -> None:
        cache = SpreadCache()
        cache.learn({"a": 1, "b": 2})
        assert cache.check({"a": 1, "b": 2, "c": 1}) == ["c"]
        with pytest.raises(StaleStream):
            cache.check({"a": 2})

    def test_it_is_bounded_and_keeps_the_latest(self) -> None:
        cache = SpreadCache(3)
        cache.learn({"a": 1, "b": 1, "c": 1})
        cache.check({"a": 1})
        cache.learn({"d": 1})
        assert cache.check({"a": 1, "b": 1, "c": 1, "d": 1}) == ["b"]


class TestShardPlan:
    def test_it_cuts_events_by_partition(self) -> None:
        plan = shard_plan("mine", EPOCH, 3)
        assert [next(iter(command)) for command in plan] == [
            "enableSharding", "shardCollection", "shardCollection", "split", "split", "split",
        ]  # fmt: skip
        assert plan[1] == {"shardCollection": "mine.events", "key": {"p": 1}}
        assert [command["middle"]["p"] for command in plan[3:]] == [partition_key(EPOCH, n) for n in range(3)]

    def test_it_deals_partitions_out_to_named_shards(self) -> None:
        plan = shard_plan("mine", EPOCH, 5, ["a", "b"])
        moves = [(partition_of_key(c["find"]["p"]), c["to"]) for c in plan if "moveChunk" in c]
        assert moves == [(0, "a"), (1, "b"), (2, "a"), (3, "b"), (4, "a")]

    def test_a_shell_can_read_it(self) -> None:
        plan = shard_plan("mine", EPOCH, 2, ["a"])
        for command, line in zip(plan, as_shell(plan), strict=True):
            assert line.startswith("db.adminCommand(EJSON.parse(")
            inner = json.loads(line.removeprefix("db.adminCommand(EJSON.parse(").removesuffix("))"))
            assert json_util.loads(inner) == command

    def test_what_is_targeted(self) -> None:
        assert is_targeted("events", {"p": b"1", "i": b"2"})
        assert is_targeted("events", {"p": {"$in": [b"1"]}})
        assert not is_targeted("events", {"i": b"2"})
        assert not is_targeted("events", {"p": {"$exists": True}})
        assert is_targeted("streams", {"_id": {"$gt": "a"}})
        assert not is_targeted("streams", {"spread": 1})
        assert set(SHARD_KEYS) == {"events", "streams"}
