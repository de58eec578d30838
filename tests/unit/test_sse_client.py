"""The CLI's event stream parser, by the rules of the HTML standard, 9.2.5 and 9.2.6."""

from __future__ import annotations

import random

import pytest

from services.cli.sse_client import EventParser, ServerEvent


def parse(*chunks: bytes) -> list[ServerEvent]:
    parser = EventParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def data(*chunks: bytes) -> list[bytes]:
    return [event.data for event in parse(*chunks)]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_lines_end_in_three_ways(end: bytes) -> None:
    text = end.join([b"event: a", b"id: 1", b"data: x", b"data: y", b"", b"data: z", b"", b""])
    assert parse(text) == [ServerEvent("a", b"x\ny", "1"), ServerEvent("message", b"z", "1")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"\xef\xbb\xbfdata: x\n\n", [b"x"]),
        (b"data: x\n\n\xef\xbb\xbfdata: y\n\n", [b"x"]),
        (b"data:x\ndata:  y\n\n", [b"x\n y"]),
        (b"data\n\n", [b""]),
        (b"data:\n\n", [b""]),
        (b": comment\n\ndata: x\n\n", [b"x"]),
        (b"event: a\n\ndata: x\n\n", [b"x"]),
        (b"data: cut", []),
        (b"data: cut\n", []),
        (b"DATA: x\n\n", []),
        (b"\n\n\n", []),
    ],
)
def test_what_is_dispatched(text: bytes, expected: list[bytes]) -> None:
    assert data(text) == expected


def test_ids_stay_until_changed_and_nul_is_ignored() -> None:
    events = parse(b"id: 1\ndata: a\n\ndata: b\n\nid: 2\x00\ndata: c\n\nid\ndata: d\n\n")
    assert [event.last_event_id for event in events] == ["1", "1", "1", ""]


def test_an_id_without_data_counts_and_one_of_a_cut_block_does_not() -> None:
    parser = EventParser("start")
    assert list(parser.feed(b"id: 5\n\nid: 6\n")) == []
    assert parser.last_event_id == "5"


def test_retry_takes_digits_only() -> None:
    parser = EventParser()
    list(parser.feed(b"retry: 12\nretry: 1.5\nretry: -1\nretry:\nretry: \xd9\xa3\n"))
    assert parser.retry_ms == 12


@pytest.mark.parametrize("seed", range(20))
def test_chunks_may_be_cut_anywhere(seed: int) -> None:
    dice = random.Random(seed)
    text = "\ufeffid: ä\r\ndata: x\rdata: ü\n\nevent: e\r\n\r\ndata: z\r\r\ndata: q\r\n\r\n".encode()
    cuts = sorted(dice.randrange(len(text)) for _ in range(dice.randrange(1, 12)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(*chunks) == parse(text)
    assert data(text) == [b"x\n\xc3\xbc", b"z", b"q"]
