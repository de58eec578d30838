"""Files of JSON lines as events: names, ids, bytes; and the pieces and segments they travel in."""

from __future__ import annotations

import gzip
import json
from contextlib import aclosing
from pathlib import Path

import pytest

from services.cli.demo import generated_lines
from services.cli.feedfile import Mapper, UnusableLine, line_id, open_feed_file, stream_token
from services.cli.sending import LineSource, Segment, Unsent, pieces_of
from shared.errors import StartError

LINE = (
    b'{"time":"2015-09-12T00:46:58.771Z","channel":"#en.wikipedia","page":"Talk:Oswald \\u0054","delta":1.0,"n":null}'
)
MAPPER = Mapper(
    "channel", "cdrs-pub:edits", prefix="wiki.", key_from="page", time_from="time", attributes={"d": "delta"}
)


def test_an_event_keeps_the_lines_bytes_as_its_data() -> None:
    event = MAPPER.event(1, LINE)
    assert event.endswith(b',"data":' + LINE + b"}")
    parsed = json.loads(event)
    assert parsed["cdrsstream"] == "wiki.en.wikipedia"
    assert parsed["partitionkey"] == "Talk:Oswald T"
    assert parsed["time"] == "2015-09-12T00:46:58.771Z"
    assert parsed["source"] == "cdrs-pub:edits"
    assert parsed["type"] == "event"
    assert parsed["d"] == "1.0"
    assert list(parsed)[-1] == "data"


def test_ids_are_those_of_line_number_and_line() -> None:
    assert MAPPER.event(7, LINE) == MAPPER.event(7, LINE)
    assert len({line_id(7, LINE), line_id(8, LINE), line_id(7, LINE + b" ")}) == 3
    assert json.loads(MAPPER.event(7, LINE))["id"] == line_id(7, LINE)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("#en.wikipedia", "en.wikipedia"),
        ("plain-1_x", "plain-1_x"),
        ("a b", "a_x20b"),
        ("ü", "_xC3_xBC"),
        ("##a", "_x23a"),
        ("a/b", "a_x2Fb"),
    ],
)
def test_stream_names_are_made_of_any_text(text: str, name: str) -> None:
    assert stream_token(text) == name


@pytest.mark.parametrize("text", ["", "#", "a..b", ".a", "a."])
def test_text_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(UnusableLine):
        stream_token(text)


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b'{"page":"x"}', b'{"channel":null}', b'{"channel":"#"}', b'{"channel":NaN}']
)
def test_lines_that_cannot_be_events_are_refused(line: bytes) -> None:
    with pytest.raises(UnusableLine):
        MAPPER.event(1, line)


@pytest.mark.parametrize("name", ["Big", "a-b", "id", "time", "cdrsx", "", "x" * 21])
def test_attribute_names_that_no_event_can_have_are_refused(name: str) -> None:
    with pytest.raises(StartError):
        Mapper("channel", "s", attributes={name: "page"}).check()


@pytest.mark.parametrize("zipped", [False, True])
def test_files_are_read_plain_and_gzipped(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "lines"
    content = b'{"a":1}\r\n\n{"a":2}\n{"a":3}'
    path.write_bytes(gzip.compress(content) if zipped else content)
    with open_feed_file(path) as feed:
        assert list(feed.numbered()) == [(1, b'{"a":1}'), (3, b'{"a":2}'), (4, b'{"a":3}')]
        assert feed.read_bytes == feed.size


def test_a_damaged_or_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(b'{"a":1}\n' * 10_000)[:-20])
    with open_feed_file(path) as feed, pytest.raises(StartError, match="to its end"):
        list(feed.numbered())
    with pytest.raises(StartError, match="cannot be read"), open_feed_file(tmp_path / "none"):
        pass


def test_pieces_hold_every_line_once_in_order() -> None:
    lines = [(number, b"x" * (number % 500)) for number in range(1, 3000)]
    pieces = list(pieces_of(lines))
    assert b"".join(piece.data for piece in pieces) == b"".join(line + b"\n" for _, line in lines)
    assert [number for piece in pieces for number in piece.numbers] == [number for number, _ in lines]
    assert len(pieces) > 5


async def begun_segment() -> tuple[Unsent, Segment, list[bytes]]:
    """A thousand lines, of which three pieces were sent when it broke off."""
    source = Unsent(LineSource((number, b"x" * 1000) for number in range(1, 1001)))
    first = await source.next()
    assert first is not None
    segment = Segment(source, first, 10_000)
    async with aclosing(segment.body()) as body:
        begun = [await anext(body), await anext(body), await anext(body)]
    return source, segment, begun


async def test_a_segment_can_be_sent_again_from_its_first_byte() -> None:
    source, segment, begun = await begun_segment()
    again = [piece async for piece in segment.body()]
    assert again[:3] == begun
    assert b"".join(again) == (b"x" * 1000 + b"\n") * 1000
    assert segment.numbers == list(range(1, 1001))
    assert await source.next() is None


async def test_what_is_cut_off_a_segment_comes_next() -> None:
    source, segment, begun = await begun_segment()
    numbers: list[int] = []
    for kept in (2, 1, 1):
        segment.cut()
        assert [piece async for piece in segment.body()] == begun[:kept]
    numbers += segment.numbers
    while (piece := await source.next()) is not None:
        numbers += piece.numbers
    assert numbers == list(range(1, 1001))


def test_generated_edits_have_the_samples_shape_and_are_the_same_each_time() -> None:
    lines = list(generated_lines(50))
    assert lines == list(generated_lines(50))
    mapper = Mapper("channel", "demo", prefix="wiki.", key_from="page", time_from="time")
    for number, line in enumerate(lines, 1):
        assert json.loads(mapper.event(number, line))["cdrsstream"].endswith(".wikipedia")
