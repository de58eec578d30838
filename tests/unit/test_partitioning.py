"""Which partition an event belongs to, and which node a partition prefers."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.partitioning import partition_of, partitions_of_stream, rendezvous

names = st.from_regex(r"[A-Za-z0-9_-]{1,20}(\.[A-Za-z0-9_-]{1,20}){0,3}", fullmatch=True)
counts = st.integers(1, 48)


class TestPartitionOf:
    @given(names, st.none() | st.text(min_size=1), st.text(min_size=1), counts, st.integers(1, 60))
    def test_it_is_one_of_the_streams(
        self, stream: str, key: str | None, event_id: str, partitions: int, spread: int
    ) -> None:
        partition = partition_of(stream, key, event_id, partitions=partitions, spread=spread)
        possible = partitions_of_stream(stream, partitions=partitions, spread=spread)
        assert partition in possible
        assert len(possible) == len(set(possible)) == min(spread, partitions)
        assert all(0 <= p < partitions for p in possible)

    @given(names, st.text(min_size=1), counts)
    def test_an_unspread_stream_lives_in_one(self, stream: str, key: str, partitions: int) -> None:
        found = {partition_of(stream, k, i, partitions=partitions) for k in (None, key) for i in "abc"}
        assert len(found) == 1

    @given(names, st.text(min_size=1), counts, st.integers(2, 12))
    def test_a_key_stays_together(self, stream: str, key: str, partitions: int, spread: int) -> None:
        assert len({partition_of(stream, key, i, partitions=partitions, spread=spread) for i in "abcdef"}) == 1

    def test_without_a_key_a_spread_stream_uses_all_its_partitions(self) -> None:
        found = {partition_of("s", None, str(n), partitions=12, spread=4) for n in range(200)}
        assert found == set(partitions_of_stream("s", partitions=12, spread=4))

    def test_it_never_changes(self) -> None:
        """Stored events lie where this function says: other figures would be another epoch."""
        found = [partition_of(name, None, "1", partitions=12) for name in ("a", "orders", "wiki.en.wikipedia", "x.y.z")]
        assert found == EXPECTED
        assert partition_of("orders", "k", "1", partitions=12, spread=6) == EXPECTED_SPREAD

    def test_streams_are_even(self) -> None:
        load = Counter(partition_of(f"stream-{n}", None, "1", partitions=12) for n in range(12_000))
        assert len(load) == 12
        assert max(load.values()) < 1.2 * 1000
        assert min(load.values()) > 0.8 * 1000


EXPECTED = [11, 1, 8, 0]
EXPECTED_SPREAD = 4

ids = st.lists(st.text("abcdef0123456789", min_size=1, max_size=8), min_size=1, max_size=8, unique=True)


class TestRendezvous:
    @given(st.integers(0, 47), ids)
    def test_it_ranks_every_node_whatever_their_order(self, partition: int, nodes: list[str]) -> None:
        ranked = rendezvous(partition, [(node, 1.0) for node in nodes])
        assert sorted(ranked) == sorted(nodes)
        assert rendezvous(partition, [(node, 1.0) for node in reversed(nodes)]) == ranked

    @given(st.integers(0, 47), ids, st.data())
    def test_who_leaves_moves_nobody_else(self, partition: int, nodes: list[str], data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(nodes))
        before = rendezvous(partition, [(node, 2.0) for node in nodes])
        after = rendezvous(partition, [(node, 2.0) for node in nodes if node != gone])
        assert list(after) == [node for node in before if node != gone]

    @given(st.integers(0, 47), ids, st.data())
    def test_more_weight_never_lowers_a_rank(self, partition: int, nodes: list[str], data: st.DataObject) -> None:
        favoured = data.draw(st.sampled_from(nodes))
        before = rendezvous(partition, [(node, 1.0) for node in nodes])
        after = rendezvous(partition, [(node, 1.5 if node == favoured else 1.0) for node in nodes])
        assert after.index(favoured) <= before.index(favoured)

    def test_shares_follow_weights(self) -> None:
        nodes = [("a", 1.0), ("b", 2.0), ("c", 1.0)]
        first = Counter(rendezvous(partition, nodes)[0] for partition in range(8000))
        assert first["b"] / 8000 == pytest.approx(0.5, abs=0.03)
        assert first["a"] / 8000 == pytest.approx(0.25, abs=0.03)

    def test_nobody(self) -> None:
        assert list(rendezvous(0, [])) == []
