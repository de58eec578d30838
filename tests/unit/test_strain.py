"""What a node says it serves badly: from looks, without a clock."""

from __future__ import annotations

from cdrs.strain import Strain

WINDOW = 64
ALL = range(3)


def test_reading_that_goes_on_is_no_strain_however_busy() -> None:
    strain = Strain(window=WINDOW)
    for number in range(10):
        strain.look({0: number, 1: 0}, {0: 16, 1: 0})
        assert strain.partitions(ALL, ()) == []


def test_a_partition_that_stands_still_although_there_is_more() -> None:
    strain = Strain(window=WINDOW)
    strain.look({0: 5, 1: 5}, {0: 1, 1: 0})
    strain.look({0: 5, 1: 5}, {0: 1, 1: 0})
    assert strain.partitions(ALL, ()) == [], "one look without progress says little"
    strain.look({0: 5, 1: 5}, {0: 3, 1: 0})
    assert strain.partitions(ALL, ()) == [0]
    strain.look({0: 8, 1: 5}, {0: 0, 1: 0})
    assert strain.partitions(ALL, ()) == []


def test_one_far_behind_comes_back_when_it_has_caught_up() -> None:
    strain = Strain(window=WINDOW)
    strain.look({0: 100}, {0: WINDOW // 4 + 1})
    assert strain.partitions(ALL, ()) == [0]
    strain.look({0: 110}, {0: WINDOW // 8})
    assert strain.partitions(ALL, ()) == [0], "it would be behind again at once"
    strain.look({0: 120}, {0: WINDOW // 16})
    assert strain.partitions(ALL, ()) == []


def test_a_log_that_does_not_answer_and_full_queues_concern_every_partition() -> None:
    strain = Strain(window=WINDOW)
    strain.silence()
    assert strain.partitions(ALL, ()) == []
    strain.silence()
    assert strain.partitions(ALL, ()) == [0, 1, 2]
    strain.look({0: 1}, {0: 0})
    assert strain.partitions(ALL, ()) == []
    for share, expected in ((0.8, []), (0.9, [0, 1, 2]), (0.5, [0, 1, 2]), (0.2, []), (0.8, [])):
        strain.fill(share)
        assert strain.partitions(ALL, ()) == expected, share


def test_broken_partitions_are_always_among_them() -> None:
    assert Strain(window=WINDOW).partitions(ALL, {2: "gone"}) == [2]
