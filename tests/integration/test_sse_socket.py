"""The checker itself: its HTTP and event-stream readers must not depend on how bytes are cut into reads."""

from __future__ import annotations

import pytest
from exactly_once import check_attributes, check_exactly_once
from sse_socket import Block, BodyReader, EventStreamParser, data_of

STREAM = (
    b"retry: 1500\nevent: cdrs.cursor\nid: c0\ndata:\n\n"
    b": a comment\nid: c1\ndata: {\"a\":1}\n\n"
    b"id: only\n\n"
    b"event: x\ndata: one\ndata:two\nid: c2\n\n"
    b"id: c3\ndata: never finished\n"
)  # fmt: skip
WANTED = [
    Block(b"c0", b"cdrs.cursor", b"", 0.0),
    Block(b"c1", b"", b'{"a":1}', 0.0),
    Block(b"c2", b"x", b"one\ntwo", 0.0),
]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_parser(size: int, end: bytes) -> None:
    parser = EventStreamParser()
    data = STREAM.replace(b"\n", end)
    blocks = [b for at in range(0, len(data), size) for b in parser.feed(data[at : at + size])]
    assert blocks == WANTED
    assert parser.retry_ms == 1500


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_chunked_body(size: int) -> None:
    parts = [STREAM[:10], STREAM[10:11], STREAM[11:]]
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n"
    wire += b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"
    reader = BodyReader()
    assert b"".join(reader.feed(wire[at : at + size]) for at in range(0, len(wire), size)) == STREAM
    assert (reader.status, reader.headers["x-a"], reader.complete) == (200, "b", True)


@pytest.mark.parametrize("data", [b'{"a":1,"data":2}', b'"}"', b"[1 , 2]", b"null", b'{"b":"\\"data\\":"}', b"1.50"])
def test_data_is_cut_out_by_position(data: bytes) -> None:
    head = rb'{"specversion":"1.0","id":"a\"b,\"data\":9","n":-1,"b":true,"cdrsstream":"s","data":'
    assert data_of(head + data + b"}") == data


def _block(number: int, data: bytes = b"") -> Block:
    head = b'{"specversion":"1.0","id":"%d","source":"t","type":"e","cdrsstream":"a.b","data":' % number
    return Block(b"c%d" % number, b"", head + (data or b'{"n":%d}' % number) + b"}", 0.0)


_LINES = {"a.b": [b'{"n":0}', b'{"n":1}', b'{"n":2}']}


@pytest.mark.parametrize(
    "blocks",
    [
        [_block(0), _block(2)],
        [_block(0), _block(1), _block(1), _block(2)],
        [_block(0), _block(2), _block(1)],
        [_block(0), _block(1, b'{"n": 1}'), _block(2)],
        [],
    ],
    ids=["hole", "repeat", "order", "bytes", "nothing"],
)
def test_exactly_once_sees(blocks: list[Block]) -> None:
    check_exactly_once([_block(0), _block(1), _block(2)], _LINES, "good")
    with pytest.raises(AssertionError):
        check_exactly_once(blocks, _LINES, "bad")


def test_attributes_sees_an_identity_twice() -> None:
    check_attributes([_block(0), _block(1)])
    with pytest.raises(AssertionError):
        check_attributes([_block(0), _block(0, b"9")])
