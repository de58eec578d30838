"""Epochs, positions, cursors."""

from __future__ import annotations

import base64
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidCursor
from shared.position import (
    MAX_OFFSET,
    Cursor,
    CursorWriter,
    Epoch,
    Position,
    cursor_after,
    read_varint,
    varint,
)

EPOCH = Epoch(1, 0x9F3A22C1)

epochs = st.builds(Epoch, st.integers(1, 10**6), st.integers(0, 2**32 - 1))
vectors = st.dictionaries(st.integers(0, 47), st.integers(0, MAX_OFFSET), max_size=48)


def sealed(body: bytes) -> str:
    """A text with a right checksum, whatever the body says."""
    raw = body + zlib.crc32(body).to_bytes(4, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class TestEpoch:
    def test_text(self) -> None:
        assert str(EPOCH) == "1-9f3a22c1"
        assert str(Epoch(12, 1)) == "12-00000001"

    @given(epochs)
    def test_text_and_back(self, epoch: Epoch) -> None:
        assert Epoch.parse(str(epoch)) == epoch

    @pytest.mark.parametrize("text", ["", "1", "0-9f3a22c1", "1-9F3A22C1", "1-9f3a22c", "01-9f3a22c1", "1-9f3a22c1 "])
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="epoch"):
            Epoch.parse(text)

    def test_each_creation_draws_anew(self) -> None:
        assert len({Epoch.create() for _ in range(50)}) > 45
        assert Epoch.create(7).ordinal == 7


def test_positions_are_ordered_and_readable() -> None:
    one, two = Position(EPOCH, 3, 9), Position(EPOCH, 3, 10)
    assert one < two < Position(EPOCH, 4, 0) < Position(Epoch(2, 0), 0, 0)
    assert str(two) == "1-9f3a22c1/3/10"


class TestCursor:
    @given(epochs, vectors)
    def test_text_and_back(self, epoch: Epoch, offsets: dict[int, int]) -> None:
        assert Cursor.decode(Cursor(epoch, offsets).encode()) == Cursor(epoch, offsets)

    @given(epochs, st.dictionaries(st.integers(0, 11), st.integers(0, 10**12), max_size=12))
    def test_twelve_partitions_fit_into_128_characters(self, epoch: Epoch, offsets: dict[int, int]) -> None:
        assert len(Cursor(epoch, offsets).encode()) <= 128

    def test_fortyeight_partitions_fit_into_600_characters(self) -> None:
        assert len(Cursor(Epoch(10**6, 2**32 - 1), dict.fromkeys(range(48), MAX_OFFSET)).encode()) <= 600

    @given(vectors)
    def test_the_order_of_the_vector_does_not_matter(self, offsets: dict[int, int]) -> None:
        backwards = dict(reversed(offsets.items()))
        assert Cursor(EPOCH, backwards).encode() == Cursor(EPOCH, offsets).encode()

    def test_the_text_stays_as_it_is(self) -> None:
        """Clients keep cursors: a change of the format needs a new version number."""
        assert Cursor(EPOCH, {0: 5, 3: 300}).encode() == "AQGfOiLBAgAFA6wC75RAVQ"

    @given(st.text(max_size=60))
    def test_any_text_is_a_cursor_or_refused(self, text: str) -> None:
        try:
            cursor = Cursor.decode(text)
        except InvalidCursor:
            return
        assert cursor.encode() == text

    @given(epochs, vectors, st.data())
    def test_one_changed_character_is_noticed(self, epoch: Epoch, offsets: dict[int, int], data: st.DataObject) -> None:
        text = Cursor(epoch, offsets).encode()
        at = data.draw(st.integers(0, len(text) - 1))
        other = data.draw(st.sampled_from("ABCxyz019-_"))
        if text[at] != other:
            with pytest.raises(InvalidCursor):
                Cursor.decode(text[:at] + other + text[at + 1 :])

    @given(st.binary(max_size=40))
    def test_a_right_checksum_does_not_make_a_cursor(self, tail: bytes) -> None:
        text = sealed(b"\x01" + tail)
        try:
            cursor = Cursor.decode(text)
        except InvalidCursor:
            return
        assert cursor.encode() == text

    @pytest.mark.parametrize(
        "body",
        [
            b"\x02" + bytes.fromhex("019f3a22c100"),  # another version
            bytes.fromhex("01019f3a22c1020005000600"),  # bytes left over
            bytes.fromhex("01019f3a22c1020305000600")[:-1],  # partitions descending
            bytes.fromhex("01019f3a22c1020005"),  # cut
            bytes.fromhex("01019f3a22c101000581")[:-1] + b"\x00",  # left over
            bytes.fromhex("01019f3a22c10130058000")[:-2],  # partition 48
            bytes.fromhex("01019f3a22c101008500"),  # not the shortest form
            bytes.fromhex("01019f3a22c131") + b"".join(bytes([p, 0]) for p in range(49)),  # 49 partitions
            bytes.fromhex("01019f3a22c10100") + varint(MAX_OFFSET + 1),
        ],
    )
    def test_malformed_although_sealed(self, body: bytes) -> None:
        with pytest.raises(InvalidCursor):
            Cursor.decode(sealed(body))

    @pytest.mark.parametrize("text", ["", "A", "AAAA", "no cursor!", "é" * 20, "A" * 1025, "AQGfOiLBAgAFA6wC75RAVQ=="])
    def test_texts_that_are_none(self, text: str) -> None:
        with pytest.raises(InvalidCursor) as caught:
            Cursor.decode(text)
        assert len(text) < 2 or text not in caught.value.detail


class TestCursorWriter:
    @given(vectors.filter(bool), st.data())
    def test_advancing_is_encoding_the_new_vector(self, offsets: dict[int, int], data: st.DataObject) -> None:
        writer = CursorWriter(EPOCH, offsets)
        vector = dict(offsets)
        for _ in range(5):
            partition = data.draw(st.sampled_from(sorted(offsets)))
            vector[partition] = data.draw(st.integers(0, MAX_OFFSET))
            writer.advance(partition, vector[partition])
            assert writer.text() == Cursor(EPOCH, vector).encode()
            assert writer.bytes() == writer.text().encode()
            assert writer.next == vector

    def test_the_cursor_behind_one_record(self) -> None:
        assert Cursor.decode(cursor_after(EPOCH, 3, 41)) == Cursor(EPOCH, {3: 42})


class TestVarint:
    @given(st.integers(0, 2**63 - 1))
    def test_there_and_back(self, value: int) -> None:
        data = varint(value)
        assert read_varint(b"\xff" + data + b"\x00", 1) == (value, 1 + len(data))

    @pytest.mark.parametrize("value", [0, 127, 128, 16_383, 16_384])
    def test_length(self, value: int) -> None:
        assert len(varint(value)) == max(1, -(-value.bit_length() // 7))

    def test_what_is_none(self) -> None:
        with pytest.raises(ValueError, match=r"too long|shortest"):
            read_varint(b"\x80" * 12, 0)
        with pytest.raises(IndexError):
            read_varint(b"\x80", 0)
