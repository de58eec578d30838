"""Building events: the payload's bytes survive, the envelope is checked, fast and careful ways agree."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from shared.envelope import split_compact
from shared.errors import (
    ClientError,
    DuplicateKey,
    InvalidEvent,
    MalformedJson,
    PayloadTooLarge,
    TooDeep,
    TooManyFields,
)
from shared.events import SPREAD_UNKNOWN, Draft, EventBuilder, attributes_of
from shared.ids import UuidV7
from shared.jsonbytes import check_depth, is_json, loads, one_line, raw_items
from shared.records import DataKind, NewEvent, identity_of
from shared.validation import parse_media_type

MIB = 1024 * 1024
DEEPEST = 200_000
"""Arrays in each other that no version of Python lets a decoder follow; 3.13 follows some thousand."""


def builder(stream: str | None = "orders", **options: Any) -> EventBuilder:
    defaults: dict[str, Any] = {"accepted_ms": 5, "max_bytes": MIB, "spread_of": lambda _stream: 1}
    return EventBuilder(stream=stream, **(defaults | options))


def ce(**members: object) -> bytes:
    return json.dumps({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"} | members).encode()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)
layouts = st.sampled_from(
    [{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}, {"indent": "\r\n\t"}]
)


def data_of(event: NewEvent) -> bytes:
    return event.value[event.data_at : -1]


# --- splicing ----------------------------------------------------------------------------------------


@given(json_values, layouts)
def test_a_payload_keeps_its_bytes(value: Any, layout: dict[str, Any]) -> None:
    body = json.dumps(value, **layout).encode()
    event = builder().payload(b" \r\n\t" + body + b"\n").event
    assert data_of(event) == re.sub(rb"[\r\n]", b" ", body)
    assert json.loads(event.value)["data"] == json.loads(body)
    assert event.kind == DataKind.JSON


@given(
    json_values,
    layouts,
    st.booleans(),
    st.dictionaries(
        st.from_regex("[abx-z]{1,3}", fullmatch=True),
        st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), max_size=9)
        | st.booleans()
        | st.integers(-9, 9)
        | st.none(),
        max_size=5,
    ),
)
def test_a_structured_event_keeps_data_and_attributes(
    value: Any, layout: dict[str, Any], data_first: bool, extensions: dict[str, Any]
) -> None:
    members = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", **extensions}
    members = {"data": value, **members} if data_first else {**members, "data": value}
    body = json.dumps(members, **layout).encode()
    for draft in (builder().structured(body), builder().line(body, 0)):
        event = draft.event
        stored = json.loads(event.value)
        kept = {name: item for name, item in members.items() if item is not None or name == "data"}
        assert stored == kept | {"cdrsstream": "orders"}
        assert list(stored)[:4] == ["specversion", "id", "source", "type"]
        assert list(stored)[-2:] == ["cdrsstream", "data"]
        assert b"\n" not in event.value
        assert json.loads(data_of(event)) == value
        assert attributes_of(event) == {name: item for name, item in stored.items() if name != "data"}
        assert event.identity == identity_of("orders", "/s", "1")


@given(json_values, layouts)
def test_numbers_escapes_and_spaces_inside_survive_in_both_ways(value: Any, layout: dict[str, Any]) -> None:
    data = json.dumps(value, **layout).encode()
    last = b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data":' + data + b"}"
    first = b'{"data" : ' + data + b',"specversion":"1.0","id":"1","source":"/s","type":"t"}'
    assert data_of(builder().structured(last).event) == one_line(data)
    assert builder().structured(last).event.value == builder().structured(first).event.value


@pytest.mark.parametrize(
    "data",
    [
        b"1.0e+05",
        b"-0",
        b"12345678901234567890123",
        b"1e999",
        b'"\\u00e9\\/\\n"',
        b'{"a":1,"a":2}',
        b"[ 1 ,2 ]",
        b'"\xe2\x80\xa8"',
        b"null",
    ],
)
def test_data_is_opaque(data: bytes) -> None:
    body = b'{"specversion":"1.0","id":"1","source":"/s","type":"t","n":5,"data":' + data + b"}"
    for draft in (
        builder().payload(data),
        builder().structured(body),
        builder().line(body, 0),
        builder().line(data, 0),
    ):
        assert data_of(draft.event) == data
    assert attributes_of(builder().structured(body).event)["n"] == 5
    (item,) = builder().batch(b"[ " + body + b" ]", max_events=9)
    assert isinstance(item, Draft)
    assert data_of(item.event) == data


def test_no_data_and_null_data_differ() -> None:
    none = builder().structured(ce()).event
    null = builder().structured(ce(data=None)).event
    assert (none.kind, none.data_at) == (DataKind.NONE, 0)
    assert (null.kind, data_of(null)) == (DataKind.JSON, b"null")
    assert attributes_of(none) == attributes_of(null)


def test_text_and_base64() -> None:
    text = builder().structured(ce(data="a\nb", datacontenttype="text/csv")).event
    assert (text.kind, data_of(text)) == (DataKind.TEXT, b'"a\\nb"')
    as_json = builder().structured(ce(data="a", datacontenttype="text/json")).event
    assert as_json.kind == DataKind.JSON
    binary = builder().structured(ce(data_base64="AP8=", datacontenttype="image/png")).event
    assert (binary.kind, data_of(binary)) == (DataKind.BASE64, b'"AP8="')
    assert b',"datacontenttype":"image/png","data_base64":"AP8="}' in binary.value
    assert "data_base64" not in attributes_of(binary)
    slashes = builder().structured(ce(data_base64="////").replace(b"/", b"\\/").replace(b"\\/s", b"/s")).event
    assert data_of(slashes) == b'"////"'
    unset = builder().structured(ce(data=1, data_base64=None)).event
    assert unset.kind == DataKind.JSON


@pytest.mark.parametrize("base64", ["A", "AA=", "AA==AA==", "A A=", "AA-_", "AA==\n", 5, ["AA=="]])
def test_bad_base64(base64: object) -> None:
    with pytest.raises(InvalidEvent):
        builder().structured(ce(data_base64=base64))


# --- the fast way and the careful way ----------------------------------------------------------------


@given(
    st.lists(
        st.sampled_from(
            [
                b"{",
                b"}",
                b"[",
                b"]",
                b",",
                b":",
                b" ",
                b'"',
                b"\\",
                b'"data":',
                b'"data"',
                b'"id":"1"',
                b'"source":"/s"',
                b'"type":"t"',
                b'"specversion":"1.0"',
                b'"a":1',
                b"1",
                b"null",
                b'"\\u0069d"',
                b"{}",
                b"\r",
                b"\xff",
                b'"x":"\\"data\\":"',
            ]
        ),
        max_size=16,
    )
)
@example([b'{"specversion":"1.0","id":"1",', b'"source":"/s","type":"t",', b'"data":', b"1", b",", b'"a":1', b"}"])
@example([b'{"a":"', b'"data":', b'"}'])
@example([b'{,"data":1}'])
@example([b' "data":1}'])
@example([b'{"specversion":"1.0","id":"1","source":"/s","type":"t","x":{"y":2,"data":1}}'])
@example([b'{"specversion":"1.0","id":"1","source":"/s","type":"t","x":"\\",\\"data\\":","data":1}'])
def test_the_fast_split_agrees_with_parsing(pieces: list[bytes]) -> None:
    text = b"".join(pieces)
    found = split_compact(text)
    if found is None:
        return
    members, raw = found
    parsed = orjson.loads(text)
    assert json.loads(text, object_pairs_hook=lambda pairs: len(pairs)) == len(parsed)
    assert parsed.pop("data") == orjson.loads(raw)
    assert parsed == members


_NEARLY_JSON = [
    b'{"user":"GE\\n\\u00e9\\ud83d\\ude00","a":[1,2.5e3,-0,true,null,{"b":{}}],"x":"\xc3\xa9\xf0\x9f\x98\x80"}',
    b'[[1,-2,0.5,1e9,"",""],{"":[],"k":{}},false]',
    b'"\\udc00 \\ud800\\u0041"',
]
_INSTEAD = st.sampled_from([b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"9", b".", b"e", b"-", b"\x00",
                            b"\x1f", b"\x7f", b"\xc3", b"\xff", b"\xed\xa0\x80", b" ", b"\n", b"d8", b""])  # fmt: skip


@given(st.sampled_from(_NEARLY_JSON), st.lists(st.tuples(st.integers(0, 80), _INSTEAD), max_size=4))
@example(b"1e400", [])
@example(b"\xef\xbb\xbf1", [])
def test_what_is_only_looked_at_is_taken_as_what_is_parsed(text: bytes, changes: list[tuple[int, bytes]]) -> None:
    for at, new in changes:
        text = text[:at] + new + text[at + 1 :]
    try:
        loads(text)
    except MalformedJson:
        assert not is_json(text)
    else:
        assert is_json(text)


@given(st.sampled_from(_NEARLY_JSON), st.lists(st.tuples(st.integers(0, 80), _INSTEAD), max_size=4))
@example(b"[1e400,2]", [])
@example(b"[1,]", [])
def test_what_is_only_cut_up_is_taken_as_what_is_parsed(text: bytes, changes: list[tuple[int, bytes]]) -> None:
    for at, new in changes:
        text = text[:at] + new + text[at + 1 :]
    items = raw_items(text)
    try:
        value = loads(text)
    except MalformedJson:
        assert items is None
    else:
        assert (items is not None) == isinstance(value, list)
        assert items is None or [loads(item) for item in items] == value


def test_an_item_that_is_too_deep_is_refused_alone() -> None:
    deep, good = b"[" * 33 + b"]" * 33, ce(id="good")
    item = ce(id="deep", data=1).replace(b'"data": 1', b'"data": ' + deep)
    assert deep in item
    found = list(builder().batch(b"[%b,%b,%b]" % (good, item, good), max_events=3))
    assert [type(each) for each in found] == [Draft, TooDeep, Draft]
    with pytest.raises(TooDeep):
        list(builder().batch(b"[" * DEEPEST + b"]" * DEEPEST, max_events=3))


@given(st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_make_an_event_or_a_client_error(line: bytes) -> None:
    try:
        event = builder().line(line, 0).event
    except ClientError:
        return
    assert json.loads(event.value)["data"] == json.loads(line)


@pytest.mark.parametrize(
    "body",
    [
        b'{"specversion":"1.0","id":"1","source":"/s","type":"t","id":"2"}',
        b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data":1,"data":2}',
        b'{"specversion":"1.0","id":"1","source":"/s","type":"t","\\u0069d":"1","data":1}',
        b'{"id":"id","specversion":"1.0","id":"1","source":"/s","type":"t","data":"id"}',
        b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data" :1,"data":2}',
        b'{"data":{"a":1},"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"b":2}}',
        b'{"specversion":"1.0","id":"1","source":"/s","type":"t","n":1e999,"n":1}',
    ],
)
def test_a_member_named_twice(body: bytes) -> None:
    with pytest.raises(DuplicateKey):
        builder().structured(body)


def test_escapes_in_the_envelope_are_no_duplicates() -> None:
    body = b'{"specversion":"1.0","id":"a\\"\\u0062","source":"\\/s","type":"t","\\u0061":"x"}'
    event = builder().structured(body).event
    assert json.loads(event.value)["id"] == 'a"b'
    assert json.loads(event.value)["a"] == "x"


def test_a_line_is_an_event_only_with_all_four() -> None:
    for missing in ("specversion", "id", "source", "type"):
        line = json.dumps({k: v for k, v in json.loads(ce(data=1)).items() if k != missing}).encode()
        event = builder().line(line, 0).event
        assert data_of(event) == line
        assert json.loads(event.value)["type"] == "event"
    with pytest.raises(InvalidEvent):
        builder().line(ce(id=None), 0)


# --- limits ------------------------------------------------------------------------------------------


@given(json_values)
def test_depth_is_counted_exactly(value: Any) -> None:
    def depth(item: Any) -> int:
        if isinstance(item, dict):
            return 1 + max(map(depth, item.values()), default=0)
        return 1 + max(map(depth, item), default=0) if isinstance(item, list) else 0

    text = json.dumps(value).encode()
    levels = depth(value)
    check_depth(text, depth=levels)
    assume(levels)
    with pytest.raises(TooDeep):
        check_depth(text, depth=levels - 1)


def test_wide_is_not_deep_and_hostile_depth_is_cheap() -> None:
    loads(b"[" + b",".join([b"[]"] * 300_000) + b"]")
    for text in (b"[" * 500_000, b"[" * 1000 + b"]" * 1000, b'{"a":' * 500 + b"1" + b"}" * 500):
        with pytest.raises(TooDeep):
            loads(text)
    with pytest.raises(MalformedJson):
        loads(b"[" * 1000)


def test_sizes() -> None:
    small = builder(max_bytes=2000)
    assert small.payload(b'"' + b"x" * 1998 + b'"')
    for call in (small.payload, small.structured, lambda body: small.line(body, 0)):
        with pytest.raises(PayloadTooLarge):
            call(b'"' + b"x" * 1999 + b'"')
    plain = parse_media_type("text/plain")
    with pytest.raises(PayloadTooLarge, match="encoded as JSON"):
        small.binary(b"\0" * 1900, attributes={"type": "t"}, media_type=plain)
    with pytest.raises(TooManyFields):
        builder().structured(ce(**{f"a{n}": 1 for n in range(61)}))
    assert builder().structured(ce(**{f"a{n}": 1 for n in range(59)}, data=1))


# --- ids ---------------------------------------------------------------------------------------------


def test_server_ids_are_uuids_of_version_7_in_order() -> None:
    make = UuidV7()
    made = [make() for _ in range(20_000)]
    assert made == sorted(set(made))
    for text in made[::1000]:
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", text)


def test_server_ids_stay_in_order_when_the_clock_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000]
    monkeypatch.setattr("shared.ids.time.time_ns", lambda: now[0] * 1_000_000)
    monkeypatch.setattr("shared.ids.secrets.randbits", lambda bits: (1 << bits) - 1)
    make = UuidV7()
    made = []
    for step in (0, 5, -1000, 0, 1, 2000):
        now[0] += step
        made += [make() for _ in range(3)]
    make._low = (1 << 74) - 1
    made += [make(), make()]
    assert made == sorted(set(made))


def test_fresh_only_where_the_server_made_the_id() -> None:
    assert builder().payload(b"1").event.fresh
    assert not builder(idempotency_key="k").payload(b"1").event.fresh
    assert not builder().structured(ce()).event.fresh
    ids = {
        builder(stream, idempotency_key=key).payload(b"1", index).id
        for stream in ("a", "b")
        for key in ("k", "l")
        for index in (0, 1)
    }
    assert len(ids) == 8


def test_an_unknown_spread_is_left_open() -> None:
    assert builder(spread_of=lambda _stream: None).payload(b"1").event.spread == SPREAD_UNKNOWN
    assert builder(spread_of=lambda _stream: 4).payload(b"1").event.spread == 4
