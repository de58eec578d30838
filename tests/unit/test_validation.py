"""Names and values: what is taken, what is refused, and that no input makes a check slow."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import CdrsError, InvalidPattern, InvalidStream, UnsupportedMediaType
from shared.validation import (
    Pattern,
    check_attribute,
    check_event_id,
    check_idempotency_key,
    check_key,
    check_source,
    check_stream,
    check_time,
    check_type,
    parse_media_type,
)

token = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
streams = st.lists(token, min_size=1, max_size=16).map(".".join).filter(lambda name: len(name) <= 200)


@given(streams)
def test_valid_streams_are_taken_and_are_patterns_of_themselves(name: str) -> None:
    assert check_stream(name) == name
    pattern = Pattern.parse(name)
    assert pattern.is_exact
    assert pattern.matches(name)
    assert Pattern.parse(">").matches(name) is (name.split(".", maxsplit=1)[0] != "cdrs")


@given(st.text(max_size=40))
def test_a_stream_is_what_the_documentation_says(text: str) -> None:
    tokens = text.split(".")
    valid = len(tokens) <= 16 and all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", token) for token in tokens)
    try:
        check_stream(text)
    except InvalidStream:
        assert not valid
    else:
        assert valid


@pytest.mark.parametrize("name", ["cdrs", "cdrs.dead.x"])
def test_the_servers_streams_can_be_read_only(name: str) -> None:
    assert check_stream(name) == name
    with pytest.raises(InvalidStream):
        check_stream(name, writable=True)
    assert check_stream("cdrsx.a", writable=True)


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("a.*", ["a.b", "a.-"], ["a", "a.b.c", "b.b"]),
        ("a.>", ["a.b", "a.b.c"], ["a", "ab", "b.a"]),
        ("*.b.*", ["a.b.c"], ["a.b", "b.b"]),
        ("*", ["a"], ["a.b"]),
        (">", ["a", "a.b", "cdrsx", "cdrs-x.a"], ["cdrs", "cdrs.dead.log"]),
        ("*.>", ["a.b", "a.cdrs"], ["a", "cdrs.dead.log"]),
        ("*", ["cdrsx"], ["cdrs"]),
        ("cdrs.>", ["cdrs.dead.log"], ["cdrs", "a.b"]),
        ("cdrs.*.log", ["cdrs.dead.log"], ["cdrs.dead"]),
        ("a-b.>", ["a-b.c"], ["axb.c"]),
    ],
)
def test_patterns(text: str, yes: list[str], no: list[str]) -> None:
    pattern = Pattern.parse(text)
    assert not pattern.is_exact
    assert [name for name in yes + no if pattern.matches(name)] == yes


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        ">.a",
        "a.>.b",
        ">>",
        "a*",
        "*a",
        "a>",
        "**",
        "ä",
        "a\n",
        "a/b",
        ".".join("a" * 17),
        ".".join(["a" * 64] * 4),
    ],
)
def test_bad_patterns(text: str) -> None:
    with pytest.raises(InvalidPattern):
        Pattern.parse(text)


def test_equal_patterns_are_equal() -> None:
    assert Pattern.parse("a.*") == Pattern.parse("a.*")
    assert len({Pattern.parse("a.*"), Pattern.parse("a.*"), Pattern.parse("a.>")}) == 2


@pytest.mark.parametrize(
    "time",
    [
        "2015-09-12T00:46:58Z",
        "2015-09-12t00:46:58.771z",
        "2016-02-29T23:59:60-23:59",
        "0000-02-29T00:00:00+00:00",
        "2000-02-29T00:00:00Z",
        "2015-12-31T00:00:00.123456789012Z",
    ],
)
def test_times(time: str) -> None:
    assert check_time(time) == time


@pytest.mark.parametrize(
    "time",
    [
        "",
        "2015-09-12",
        "2015-09-12 00:46:58Z",
        "2015-09-12T24:00:00Z",
        "2015-13-01T00:00:00Z",
        "2015-04-31T00:00:00Z",
        "1900-02-29T00:00:00Z",
        "2015-02-30T00:00:00Z",
        "2015-09-12T00:46:58+0100",
        "2015-09-12T00:46Z",
        "2015-09-12T00:46:58.Z",
        "２015-09-12T00:46:58Z",
        "2015-09-12T00:46:58Z\n",
        None,
        5,
    ],
)
def test_bad_times(time: object) -> None:
    with pytest.raises(CdrsError, match="RFC 3339"):
        check_time(time)


def test_what_is_odd_but_harmless_is_taken() -> None:
    assert check_event_id("naïve/id 日本 \U0001f600")
    assert check_event_id("x" * 128)
    assert check_type("com.example.type v1")
    assert check_source("urn:uuid:1")
    assert check_source("/日本?x=1#y")
    assert check_key("Köln")
    assert check_key("k" * 256)
    assert check_key("zero\u200dwidth joiner")
    assert check_attribute("\u2028 and \u00a0 and \u00ad") == "\u2028 and \u00a0 and \u00ad"
    assert check_attribute(True) is True
    assert check_attribute(-(2**31)) == -(2**31)


def test_idempotency_keys() -> None:
    assert check_idempotency_key('"a"') == "a"
    assert check_idempotency_key(' "a\\"b\\\\" ') == 'a"b\\'
    assert len(check_idempotency_key('"' + '\\"' * 128 + '"')) == 128
    for bad in ("a", '"a', '""', '"a"b"', '"\\a"', '"é"', '"' + "a" * 129 + '"', '"a";p=1'):
        with pytest.raises(CdrsError):
            check_idempotency_key(bad)


def test_media_types() -> None:
    parsed = parse_media_type('Application/JSON ; Charset="UTF-8"')
    assert (parsed.essence, parsed.charset) == ("application/json", "utf-8")
    assert parsed.is_json
    assert not parsed.is_text
    assert parse_media_type("application/vnd.x+json").is_json
    assert parse_media_type("text/plain").is_text
    assert parse_media_type("a/b;x=y;").essence == "a/b"
    for bad in ("", "json", "a/b/c", "a/b c", "a /b", "a/b;;c=d", "a/b; =c", "a/b\n", "a/" + "b" * 300):
        with pytest.raises(UnsupportedMediaType):
            parse_media_type(bad)


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    "text", ["a/b" + "; " * 120, "a/b" + " ;a=b" * 50 + "\x01", "a/b;" + " " * 249 + ",", "a/b;a=" + '"' * 200]
)
def test_no_media_type_is_slow(text: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        parse_media_type(text)
