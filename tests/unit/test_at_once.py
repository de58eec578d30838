"""What is made for many events at once is what is made for each by itself."""

from __future__ import annotations

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.receipts import ReceiptWriter, encoder
from shared.errors import CdrsError
from shared.events import Draft, EventBuilder
from shared.ids import UuidV7
from shared.jsonbytes import MAX_DEPTH, WHITE_SPACE, are_json, is_json
from shared.position import CursorWriter, Epoch, PartitionCursors
from shared.records import NewEvent, Settlement, identities_of, identity_of

DEEP = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
PIECES = [
    b"1", b"2", b" ", b",", b"\n", b"[", b"]", b"{", b"}", b":", b'"a"', b"null", b"NaN", b'"', b"\\u0041", b"\\",
    "ä".encode(), b"\xff", b"\xef\xbb\xbf", b"\r", b"\t", b'{"a":1}', b'{"specversion":"1.0"}', b'{"data":[{}]}',
    b"1e400", DEEP, b"[" + DEEP + b"]",
    b'{"specversion":"1.0","id":"7","source":"/s","type":"t","data":{"x":1}}',
]  # fmt: skip
lines = st.lists(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map(b"".join).map(lambda line: line.replace(b"\n", b"")),
    max_size=6,
).map(lambda found: [line for line in (line.strip(WHITE_SPACE) for line in found) if line])
good_lines = st.lists(st.sampled_from([b"1", b'{"a":1}', b'["x", 2]', '"ä"'.encode(), DEEP]), min_size=1, max_size=300)


def builder(**options: str) -> EventBuilder:
    return EventBuilder(**({"stream": "orders"} | options), accepted_ms=5, max_bytes=200, spread_of=lambda _stream: 1)


@given(lines | good_lines)
@example([b"1 2", b"3"])
@example([b"[1,", b"2]"])
@example([b"1 2", b'{"a":', b"3}"])
def test_lines_are_json_together_only_where_each_of_them_is(found: list[bytes]) -> None:
    if are_json(found, b"\n".join(found)):
        assert all(map(is_json, found))
    else:
        assert not all(is_json(line) and line.count(b"[") <= MAX_DEPTH for line in found)


def one_by_one(build: EventBuilder, found: list[bytes]) -> list[Draft | CdrsError]:
    drafts: list[Draft | CdrsError] = []
    for index, line in enumerate(found):
        try:
            drafts.append(build.line(line, index))
        except CdrsError as error:
            drafts.append(error)
    return drafts


def without_id(draft: Draft | CdrsError) -> tuple[object, ...]:
    assert isinstance(draft, Draft)
    event = draft.event
    assert event.identity == identity_of("orders", "/v1/streams/orders", draft.id)
    assert event.value.count(draft.id.encode()) == 1
    value = event.value.replace(draft.id.encode(), b"")
    return (
        event.stream, event.key, value, event.data_at, event.kind, event.accepted_ms, event.spread, event.fresh
    )  # fmt: skip


@given(lines | good_lines, st.sampled_from([{}, {"key": "k"}]))
@example([b"1", b'"' + b"x" * 199 + b'"'], {})
def test_payloads_at_once_are_the_events_of_their_lines(found: list[bytes], options: dict[str, str]) -> None:
    drafts = builder(**options).payloads(found)
    if drafts is not None:
        assert [without_id(draft) for draft in drafts] == [
            without_id(draft) for draft in one_by_one(builder(**options), found)
        ]


@given(good_lines)
def test_good_payloads_are_taken_at_once(found: list[bytes]) -> None:
    assert builder().payloads(found) is not None
    assert builder(idempotency_key="k").payloads(found) is None
    drafts = builder(key="k").payloads([b'{"a":1}'])
    assert drafts is not None
    assert orjson.loads(drafts[0].event.value)["partitionkey"] == "k"


def test_many_ids_ascend_and_go_on_where_the_last_one_stood() -> None:
    new = UuidV7()
    ids = [new(), *new.many(1), *new.many(500), new(), *new.many(2)]
    assert sorted(set(ids)) == ids
    assert {len(made) for made in ids} == {36}


def test_many_ids_carry_over() -> None:
    new = UuidV7()
    new._ms, new._low = 1 << 47, (1 << 48) - (1 << 33)  # a clock that stands still, and little room
    new._write_start()
    ids = new.many(50)
    assert sorted(set(ids)) == ids
    assert {made[14] for made in ids} == {"7"}


@given(st.text(), st.text(), st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_many_identities(stream: str, source: str, ids: list[str]) -> None:
    stream, source = stream.encode(errors="replace").decode(), source.encode(errors="replace").decode()
    assert identities_of(stream, source, ids) == [identity_of(stream, source, each) for each in ids]


settlements = st.builds(
    Settlement,
    partition=st.integers(0, 40),
    offset=st.integers(0, 1 << 40),
    append_ms=st.just(1),
    duplicate=st.booleans(),
    window_only=st.booleans(),
)


@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), settlements)))
@example([('a"b\\c@\n', Settlement(0, 0)), ("@", Settlement(0, 127)), ("ä", Settlement(1, 128))])
def test_receipts_as_json(found: list[tuple[str, Settlement]]) -> None:
    writer = ReceiptWriter(Epoch(3, 7))
    expected = [encoder.encode(writer.receipt(name, "orders", settlement)) for name, settlement in found]
    assert [writer.encoded(name, "orders", settlement) for name, settlement in found] == expected
    drafts = [Draft(name, NewEvent(b"", "orders", None, b"", 0, 1, 0)) for name, _ in found]
    plain = [Settlement(settlement.partition, settlement.offset) for _, settlement in found]
    expected = [
        encoder.encode(writer.receipt(draft.id, "orders", each)) for draft, each in zip(drafts, plain, strict=True)
    ]
    assert writer.lines(drafts, plain) == b"".join(line + b"\n" for line in expected)


@given(st.lists(st.integers(0, 1 << 40) | st.integers(0, 300)))
def test_cursors_of_one_partition_in_any_order(offsets: list[int]) -> None:
    cursors = PartitionCursors(Epoch(3, 7), 4)
    for offset in offsets:
        assert cursors.bytes_at(offset) == CursorWriter(Epoch(3, 7), {4: offset}).bytes()
