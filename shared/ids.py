"""Event ids that the server makes."""

from __future__ import annotations

import hashlib
import secrets
import time
from random import getrandbits

_LAST_BYTES = 6
"""Of the last group."""


class UuidV7:
    """UUIDs of version 7 (RFC 9562, 5.7), ascending within a process (its method 2, "monotonic random").

    74 random bits follow the milliseconds; within one millisecond, or when the clock is set back, they grow by a
    random step instead of being drawn again.
    """

    __slots__ = ("_high", "_low", "_ms", "_start")

    _LOW_BITS = 48
    _HIGH_BITS = 26
    """The last group, which changes from id to id, and the random bits before it, which rarely do."""

    def __init__(self) -> None:
        self._ms = 0
        self._high = 0
        self._low = 0
        self._start = ""
        """All groups but the last."""

    def __call__(self) -> str:
        ms = time.time_ns() // 1_000_000
        if ms > self._ms:
            self._begin(ms)
        else:
            self._low += getrandbits(32) + 1
            if self._low >> self._LOW_BITS:
                self._carry()
        return self._start + self._low.to_bytes(_LAST_BYTES, "big").hex()

    def many(self, count: int) -> list[str]:
        """As many calls, of which only the first looks at the clock: a third of the price."""
        ids = [self()]
        start, low, full = self._start, self._low, 1 << self._LOW_BITS
        for _ in range(count - 1):
            low += getrandbits(32) + 1
            if low >= full:
                self._low = low
                self._carry()
                start, low = self._start, self._low
            ids.append(start + low.to_bytes(_LAST_BYTES, "big").hex())  # for half the price of a format
        self._low = low
        return ids

    def _begin(self, ms: int) -> None:
        self._ms = ms
        # The highest bit starts as 0 and leaves room to grow.
        drawn = secrets.randbits(self._HIGH_BITS + self._LOW_BITS - 1)
        self._high, self._low = drawn >> self._LOW_BITS, drawn & (1 << self._LOW_BITS) - 1
        self._write_start()

    def _carry(self) -> None:
        if self._high + 1 >> self._HIGH_BITS:
            self._begin(self._ms + 1)
            return
        self._high += 1
        self._low &= (1 << self._LOW_BITS) - 1
        self._write_start()

    def _write_start(self) -> None:
        text, variant = f"{self._ms:012x}", 0x8000 | self._high & 0x3FFF
        self._start = f"{text[:8]}-{text[8:]}-7{self._high >> 14:03x}-{variant:04x}-"


uuid7 = UuidV7()
"""The process's generator."""


def idempotent_id(*, subject: str, stream: str, key: str, index: int) -> str:
    """The id of the ``index``-th event of a request with an ``Idempotency-Key``: the same for the same request."""
    text = "\x00".join((subject, stream, key, str(index)))
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"cdrs-idempotency").hexdigest()
