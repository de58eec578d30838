"""Identities, and how records travel between processes."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from new_events import event

from shared.ids import uuid7
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
    former_prefix,
    identities_of,
    identity_of,
    identity_prefix,
    prefixes_of,
)
from shared.wire import decode, encode

RECORD = Record(3, 9, 1_700_000_000_000, b"i" * 20, "orders", None, b'{"data":1}', 8, 1, 1_699_999_999_999, 7)
texts = st.text(max_size=40)
UUID7_LIKE = r"0193[0-9a-f]f2a-8c4[ef]-7[0-9a-f]{3}-9b3c-5d6e7f80910[0-9a-f]"
UUID7 = "01936f2a-8c4e-7a10-9b3c-5d6e7f809102"


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
        assert identity_of("orders", "/tests", UUID7).hex() == "aa311aabde11dde356977e07bcde12fca80e85c8"

    def test_of_a_uuid_of_version_7_it_begins_with_the_time(self) -> None:
        """So that what is stored together stands together in an index."""
        made = uuid7.many(300)
        milliseconds = [int(each[:13].replace("-", ""), 16) for each in made]
        times = [(each // 64 % 65536).to_bytes(2, "big") for each in milliseconds]
        assert [identity_of("s", "/a", each)[:2] for each in made] == times
        assert len({identity_of("s", "/a", each)[2:] for each in made}) == len(made)
        assert len({identity_of(stream, "/a", made[0]) for stream in "abc"}) == 3

    @given(st.lists(st.one_of(texts, st.from_regex(UUID7_LIKE, fullmatch=True), st.from_regex(r".{8}-.{4}-7.*"))))
    def test_alone_or_with_others_it_is_the_same(self, ids: list[str]) -> None:
        assert identities_of("s", "/a", ids) == [identity_of("s", "/a", each) for each in ids]
        for each in ids:
            assert identity_of("s", "/a", each).startswith(identity_prefix("s", each))
            assert identity_prefix("s", each) in prefixes_of("s", each)
            assert former_prefix("s", each) in prefixes_of("s", each)
            assert identity_of("s", "/a", each) in prefixes_of("s", each, "/a")
            assert len(identity_of("s", "/a", each)) == IDENTITY_BYTES

    def test_of_all_else_it_is_what_it_always_was(self) -> None:
        for each in ("1", "", "01936f2a-8c4e-4a10-9b3c-5d6e7f809102", "x1936f2a-8c4e-7a10-9b3c-5d6e7f809102"):
            assert prefixes_of("s", each) == [former_prefix("s", each)]


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
