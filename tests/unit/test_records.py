"""Identities, and how records travel between processes."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from new_events import event

from shared.position import Epoch
from shared.records import (
    IDENTITY_BYTES,
    Duplicate,
    FeedBatch,
    HistoryPage,
    LogBatch,
    NodeInfo,
    PageQuery,
    Record,
    Settlement,
    StreamInfo,
    identity_of,
    identity_prefix,
)
from shared.wire import decode, encode

RECORD = Record(3, 9, 1_700_000_000_000, b"i" * 20, "orders", None, b'{"data":1}', 8, 1, 1_699_999_999_999, 7)
texts = st.text(max_size=40)


class TestIdentity:
    @given(texts, texts, texts)
    def test_it_has_a_fixed_length_and_a_prefix(self, stream: str, source: str, event_id: str) -> None:
        identity = identity_of(stream, source, event_id)
        assert len(identity) == IDENTITY_BYTES
        assert identity.startswith(identity_prefix(stream, event_id))
        assert len(identity_prefix(stream, event_id)) == 12

    @given(st.lists(st.tuples(*[st.sampled_from(["a", "b", "ab", "a b", ""])] * 3), unique=True))
    def test_other_words_other_identity(self, triples: list[tuple[str, str, str]]) -> None:
        assert len({identity_of(*triple) for triple in triples}) == len(triples)

    def test_sources_share_a_prefix_and_nothing_else_does(self) -> None:
        assert identity_of("s", "/a", "1")[:12] == identity_of("s", "/b", "1")[:12]
        assert identity_of("s", "/a", "1")[:12] != identity_of("s", "/a", "2")[:12]
        assert identity_of("s", "/a", "1")[:12] != identity_of("t", "/a", "1")[:12]

    def test_it_never_changes(self) -> None:
        """Stored identities are compared with this function's: another result would let every event in again."""
        assert identity_of("orders", "/tests", "1").hex() == "73a6a0c81cc863ae780c4375bcde12fca80e85c8"


def test_everything_travels() -> None:
    for message in (
        event("a", key="k", spread=3, fresh=True),
        RECORD,
        LogBatch(3, 9, 10, [RECORD]),
        FeedBatch(3, 9, 12, [RECORD]),
        Duplicate(3, 9, 1, same_body=True),
        Settlement(3, 9, 1, duplicate=True),
        Settlement(problem="unavailable", detail="later"),
        NodeInfo("n", "i", Epoch(1, 5), 12),
        StreamInfo("orders", 1, 5, 2, 9, {0: 3, 7: 8}),
        PageQuery(0, 1, 2, 3, 4, ["a"], backwards=True),
        HistoryPage([RECORD], 10),
    ):
        assert decode(encode(message), type(message)) == message


def test_a_later_field_does_not_break_an_older_reader() -> None:
    longer = msgspec.msgpack.encode([*msgspec.to_builtins(RECORD, builtin_types=(bytes,)), "a field of the future"])
    assert decode(longer, Record) == RECORD


def test_an_earlier_record_is_read_with_defaults() -> None:
    shorter = msgspec.msgpack.encode(msgspec.to_builtins(RECORD, builtin_types=(bytes,))[:-1])
    assert decode(shorter, Record) == msgspec.structs.replace(RECORD, base=0)
