"""An own reading of the cursor's text form, from its description: version, epoch, vector, check sum."""

from __future__ import annotations

import base64
import zlib


def read_cursor(text: str) -> tuple[str, dict[int, int]]:
    """Epoch and vector. Raises ``ValueError`` where the check sum is wrong."""
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    body, check = raw[:-4], raw[-4:]
    if zlib.crc32(body).to_bytes(4, "big") != check:
        raise ValueError(f"a damaged cursor: {text}")
    numbers = _Numbers(body, 1)
    ordinal = numbers.next()
    epoch = f"{ordinal}-{body[numbers.at : numbers.at + 4].hex()}"
    numbers.at += 4
    return epoch, {numbers.next(): numbers.next() for _ in range(numbers.next())}


class _Numbers:
    """LEB128, one after the other."""

    def __init__(self, raw: bytes, at: int) -> None:
        self._raw = raw
        self.at = at

    def next(self) -> int:
        value = shift = 0
        while True:
            byte = self._raw[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
