"""An event whose id the server made is new to its producer, though the gateway had to send it twice."""

from __future__ import annotations

import pytest

from gateway.placement import own
from shared.events import EventBuilder
from shared.records import Settlement

COPY = Settlement(3, 7, 1, duplicate=True)


@pytest.mark.parametrize(("key", "is_copy"), [(None, False), ("key", True)])
def test_a_copy_is_one_only_where_somebody_else_can_know_the_id(key: str | None, is_copy: bool) -> None:
    builder = EventBuilder(
        stream="orders", accepted_ms=5, max_bytes=1000, spread_of=lambda _: 1, key=None, idempotency_key=key
    )
    draft = builder.payload(b"1")
    assert own(draft, COPY) == Settlement(3, 7, 1, duplicate=is_copy)
    assert own(draft, Settlement(3, 7, 1)) == Settlement(3, 7, 1)
    named = builder.structured(b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data":1}')
    assert own(named, COPY).duplicate
