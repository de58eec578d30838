"""Reading the head of a produce request, and its body under limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.bodies import (
    SMALL_BODY,
    BodyKind,
    BodyRoom,
    ClientGoneError,
    Framing,
    decode_header,
    read_body,
    read_framing,
    read_head,
)
from gateway.lines import LineCutter
from shared.errors import BatchTooLarge, CdrsError, Overloaded, PayloadTooLarge, RequestTimeout, UnsupportedMediaType

UNKNOWN = Framing(None, is_chunked=True, expects_continue=False)


def receiving(*messages: dict[str, Any] | float) -> Callable[[], Awaitable[Any]]:
    waiting = list(messages)

    async def receive() -> Any:
        if not waiting:
            await asyncio.get_running_loop().create_future()
        return waiting.pop(0)

    return receive


def part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ({"content-type": "application/json"}, BodyKind.PAYLOAD),
        ({"content-type": "APPLICATION/JSON; charset=utf-8"}, BodyKind.PAYLOAD),
        ({"content-type": "application/json", "ce-id": "1"}, BodyKind.BINARY),
        ({"content-type": "text/plain", "ce-id": "1"}, BodyKind.BINARY),
        ({"ce-id": "1"}, BodyKind.BINARY),
        ({"content-type": "application/cloudevents+json"}, BodyKind.STRUCTURED),
        ({"content-type": "application/cloudevents+json; charset=UTF-8", "ce-id": "1"}, BodyKind.STRUCTURED),
        ({"content-type": "application/cloudevents-batch+json"}, BodyKind.BATCH),
        ({"content-type": "application/x-ndjson"}, BodyKind.NDJSON),
        ({"content-type": "application/json", "content-encoding": "identity"}, BodyKind.PAYLOAD),
    ],
)
def test_kinds(headers: dict[str, str], kind: BodyKind) -> None:
    assert read_head([(name.encode(), value.encode()) for name, value in headers.items()]).kind is kind


def test_the_hint_shows_what_to_type() -> None:
    with pytest.raises(UnsupportedMediaType, match="curl --json"):
        read_head([])


def test_decoding_of_header_values() -> None:
    assert decode_header(b"Euro %E2%82%AC %F0%9F%98%80") == "Euro € 😀"
    assert decode_header(b'"a \\"quoted\\" %41"') == 'a "quoted" A'
    assert decode_header(b"100%25") == "100%"
    assert decode_header(b"50% off") == "50% off"
    assert decode_header(b"%2541") == "%41"
    assert decode_header("é".encode()) == "é"
    assert decode_header(b"%ff") is None


def test_framing() -> None:
    assert read_framing([(b"content-length", b"5")]).may_be_skipped
    assert not read_framing([(b"content-length", b"99999999")]).may_be_skipped
    assert not read_framing([(b"content-length", b"5"), (b"expect", b"100-continue")]).may_be_skipped
    assert not read_framing([(b"transfer-encoding", b"chunked")]).may_be_skipped
    assert read_framing([]).may_be_skipped


def unbounded(_size: int) -> None:
    """Room for everything."""


async def test_a_body_in_parts() -> None:
    receive = receiving(part(b"a"), part(b""), part(b"b"), part(b"c", more=False))
    assert await read_body(receive, UNKNOWN, limit=3, timeout=1, take=unbounded) == b"abc"


async def test_the_limit_with_and_without_a_length() -> None:
    with pytest.raises(PayloadTooLarge):
        await read_body(
            receiving(), Framing(4, is_chunked=False, expects_continue=False), limit=3, timeout=1, take=unbounded
        )
    with pytest.raises(BatchTooLarge):
        await read_body(receiving(part(b"ab"), part(b"cd")), UNKNOWN, limit=3, timeout=1, take=unbounded, is_batch=True)


async def test_silence_and_disconnect() -> None:
    with pytest.raises(RequestTimeout):
        await read_body(receiving(part(b"a")), UNKNOWN, limit=9, timeout=0.01, take=unbounded)
    with pytest.raises(ClientGoneError):
        await read_body(receiving(part(b"a"), {"type": "http.disconnect"}), UNKNOWN, limit=9, timeout=1, take=unbounded)


async def test_all_bodies_together_are_bounded_for_as_long_as_they_are_here() -> None:
    room, large = BodyRoom(limit=4 * SMALL_BODY), b"x" * SMALL_BODY
    with room.share() as first:
        await read_body(receiving(part(3 * large, more=False)), UNKNOWN, limit=2**30, timeout=1, take=first)
        with room.share() as second, pytest.raises(Overloaded):
            await read_body(receiving(part(large), part(b"x")), UNKNOWN, limit=2**30, timeout=1, take=second)
        assert room.taken == 3 * SMALL_BODY
        with room.share() as third, room.share() as fourth:
            third(SMALL_BODY)
            fourth(SMALL_BODY)  # what is small is let in all the same
        with pytest.raises(Overloaded), room.share() as fifth:
            fifth(2 * SMALL_BODY)
    assert room.taken == 0
    with room.share() as alone:
        alone(5 * SMALL_BODY)
        alone(SMALL_BODY)  # one always gets in


def test_lines_whatever_the_pieces() -> None:
    text = b"one\r\n\ntwo\nlonger than ten\nfive\nlast"
    whole = [b"one\r", b"", b"two", None, b"five", b"last"]
    for size in range(1, len(text) + 1):
        cutter = LineCutter(10)
        lines: list[bytes | None] = []
        for at in range(0, len(text), size):
            lines += cutter.feed(text[at : at + size])
        lines += cutter.finish()
        # A line that came in one piece is left to the builder to refuse.
        assert [line if line is None or len(line) <= 10 else None for line in lines] == whole, size


def test_a_line_without_end_takes_no_memory() -> None:
    cutter = LineCutter(10)
    for _ in range(1000):
        assert cutter.feed(b"x" * 1000) == []
    assert cutter._parts == []
    assert cutter.feed(b"\n1\n") == [None, b"1"]
    assert cutter.finish() == []


@pytest.mark.parametrize("name", ["Cdrs-Position", "cdrs-attempt"])
def test_our_own_header_fields_are_reserved(name: str) -> None:
    with pytest.raises(CdrsError, match="Cdrs-"):
        read_head([(b"content-type", b"application/json"), (name.lower().encode(), b"1")])
