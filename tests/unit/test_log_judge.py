"""The tests' own reading of the rule of judgement: by examples, and against the product's on random logs."""

from __future__ import annotations

import random

import pytest
from log_judge import Entry, judge

from cdrs.judgement import Judge, Kind
from shared.records import Record

W = 10


def entry(offset: int, name: str, base: int, partition: int = 0) -> Entry:
    return Entry(partition, offset, base, ("s", "source", name), b"")


def offsets(*entries: Entry) -> tuple[list[int], list[int], list[int]]:
    found = judge(entries, {0: 99}, W)
    visible, duplicates, void = ([e.offset for e in part] for part in (found.visible, found.duplicates, found.void))
    return visible, duplicates, void


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        ([entry(0, "a", 0), entry(1, "a", 0)], ([0], [1], [])),
        ([entry(0, "a", 0), entry(10, "a", 0)], ([0], [10], [])),
        ([entry(0, "a", 0), entry(11, "a", 1)], ([0, 11], [], [])),
        ([entry(0, "a", 0), entry(11, "a", 0)], ([0], [], [11])),
        ([entry(0, "a", 0), entry(8, "a", 0), entry(16, "a", 7)], ([0], [8, 16], [])),
        ([entry(20, "a", 5), entry(21, "a", 15)], ([21], [], [20])),
        ([entry(3, "a", -1), entry(4, "a", 4)], ([4], [], [3])),
        ([entry(1, "a", 0, partition=1), entry(0, "a", 0)], ([0, 1], [], [])),
    ],
    ids=["next", "edge of W", "beyond W", "old look-up", "by a duplicate", "void hides nothing", "epoch", "partitions"],
)
def test_the_rule_by_examples(entries: list[Entry], wanted: tuple[list[int], list[int], list[int]]) -> None:
    assert offsets(*entries) == wanted


def test_two_readings_of_the_rule_agree() -> None:
    rng = random.Random(7)
    for _ in range(200):
        entries = [entry(o, rng.choice("abcdefg"), rng.randrange(-1, o + 1)) for o in range(60) if rng.random() < 0.8]
        entries = [entry(e.offset, e.identity[2], max(e.base, e.offset - W - 2)) if e.base >= 0 else e for e in entries]
        judged = Judge(W, start=0, whole=True).judge(
            [Record(0, e.offset, 1, e.identity[2].encode() * 20, "s", None, b"", 0, 1, 0, e.base) for e in entries],
            upto=60,
        )
        by_kind = {kind: [e.offset for e, v in zip(entries, judged, strict=True) if v.kind is kind] for kind in Kind}
        assert offsets(*entries) == (by_kind[Kind.VISIBLE], by_kind[Kind.DUPLICATE], by_kind[Kind.VOID])
