"""What of a partition was found whole is believed for a while, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.backends.mongo.soundness import BELIEVED, BLOCK, Soundness

ranges = st.tuples(st.integers(0, 5 * BLOCK), st.integers(1, 3 * BLOCK)).map(lambda pair: (pair[0], sum(pair)))


@given(st.lists(ranges, max_size=6), ranges)
def test_nothing_is_believed_that_was_not_found(found: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    sound = Soundness()
    for low, high in found:
        sound.found(0, low, high, 0.0)
    unsure = sound.unsure(0, *asked, 1.0)
    low, high = unsure or (asked[1], asked[1])
    assert asked[0] <= low <= high <= asked[1]
    believed = [*range(asked[0], low, 97), *range(high, asked[1], 97), *([low - 1] if low > asked[0] else [])]
    for offset in believed:
        assert any(first <= offset < stop for first, stop in found)


def test_it_is_believed_for_a_while_and_for_one_partition() -> None:
    sound = Soundness()
    sound.found(0, 10, BLOCK + 10, 0.0)
    assert sound.unsure(0, 10, BLOCK + 10, BELIEVED - 1) is None
    assert sound.unsure(0, 5, BLOCK + 20, BELIEVED - 1) == (5, BLOCK + 20)
    assert sound.unsure(0, 10, BLOCK + 20, BELIEVED - 1) == (BLOCK + 10, BLOCK + 20)
    assert sound.unsure(1, 10, 20, 1.0) == (10, 20)
    assert sound.unsure(0, 10, 20, BELIEVED + 1) == (10, 20)
    sound.found(0, BLOCK + 10, BLOCK + 20, BELIEVED - 1)
    assert sound.unsure(0, 10, BLOCK + 20, BELIEVED - 1) is None
