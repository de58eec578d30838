"""Framing, read back by a parser written from the standard."""

from __future__ import annotations

import base64

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_records import record
from spec_parser import SpecParser

from shared.records import DataKind
from shared.sse import Shape, bye_block, control_block, cursor_block, event_block, retry_block, stamp_members


def test_an_event_arrives_as_sent() -> None:
    parser = SpecParser()
    rec = record(5, data=b'{"text": "a\\r\\ndata: b\xe2\x80\xa8"}')
    (event,) = parser.feed(event_block(rec, b"cursor-5", Shape()))
    assert event.name == "message"
    assert event.data.encode() == rec.value
    assert event.last_id == "cursor-5"


@pytest.mark.parametrize(("event_type", "name"), [("edit", "edit"), ("error", "message"), ("open", "message")])
def test_named_keeps_types_that_would_fire_the_pages_own_handlers_unnamed(event_type: str, name: str) -> None:
    (event,) = SpecParser().feed(event_block(record(1, type=event_type), b"c", Shape(named=True)))
    assert event.name == name


def test_payload_only() -> None:
    (event,) = SpecParser().feed(event_block(record(1, data=b'{"a": 1e400}'), b"c", Shape(data_only=True)))
    assert event.data == '{"a": 1e400}'


@given(st.text())
def test_text_payloads_survive_any_line_ends(text: str) -> None:
    rec = record(1, data=orjson.dumps(text), kind=DataKind.TEXT)
    (event,) = SpecParser().feed(event_block(rec, b"c", Shape(data_only=True)))
    if "\r" in text:
        assert event.name == "cdrs.base64"
        assert base64.b64decode(event.data).decode() == text
    else:
        assert event.name == "message"
        assert event.data == text


def test_bytes_come_as_base64_under_their_own_name() -> None:
    rec = record(1, data=b'"AP8="', kind=DataKind.BASE64)
    (event,) = SpecParser().feed(event_block(rec, b"c", Shape(data_only=True, named=True)))
    assert (event.name, base64.b64decode(event.data)) == ("cdrs.base64", b"\x00\xff")


def test_an_event_without_data_moves_the_cursor() -> None:
    parser = SpecParser()
    (event,) = parser.feed(event_block(record(1, kind=DataKind.NONE), b"c1", Shape(data_only=True)))
    assert (event.data, parser.last_id) == ("", "c1")


def test_a_cursor_block_is_dispatched_under_its_own_name_with_empty_data() -> None:
    parser = SpecParser()
    (event,) = parser.feed(cursor_block(b"abc"))
    assert (event.name, event.data, parser.last_id) == ("cdrs.cursor", "", "abc")


def test_control_events_do_not_touch_the_cursor() -> None:
    parser = SpecParser()
    parser.feed(cursor_block(b"abc"))
    (gap,) = parser.feed(control_block("cdrs.gap", {"lost": None}))
    assert (gap.name, orjson.loads(gap.data), parser.last_id) == ("cdrs.gap", {"lost": None}, "abc")


def test_bye_sets_the_reconnect_delay() -> None:
    parser = SpecParser()
    (bye,) = parser.feed(bye_block("drain", 750))
    assert orjson.loads(bye.data) == {"reason": "drain", "retry_ms": 750}
    assert parser.retry == 750
    parser.feed(retry_block(2000))
    assert parser.retry == 2000


def test_stamps_stand_in_the_event() -> None:
    rec = record(7, partition=3)
    stamps = stamp_members(rec, epoch="1-00000001", accepted="a", appended="b", dispatched="c")
    (event,) = SpecParser().feed(event_block(rec, b"c", Shape(stamps=True), stamps=stamps))
    parsed = orjson.loads(event.data)
    assert parsed["cdrsposition"] == "1-00000001/3/7"
    assert parsed["cdrsdispatched"] == "c"
    assert parsed["data"] == {"n": 1}
