"""Judging what a subscriber got: each event of its streams once, in order, byte for byte."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from sse_socket import Block, data_of


def by_stream(blocks: Iterable[Block]) -> dict[str, list[bytes]]:
    """The payload bytes of each stream, in the order of arrival."""
    split: dict[str, list[bytes]] = {}
    for block in blocks:
        split.setdefault(json.loads(block.data)["cdrsstream"], []).append(data_of(block.data))
    return split


def check_exactly_once(blocks: Sequence[Block], wanted: Mapping[str, Sequence[bytes]], who: str) -> None:
    """Raise with the first difference in words, rather than with two lists of thousands."""
    got = by_stream(blocks)
    strange = set(got) - set(wanted)
    assert not strange, f"{who}: events of streams it did not ask for: {sorted(strange)[:5]}"
    for stream, lines in wanted.items():
        arrived = got.get(stream, [])
        if arrived == list(lines):
            continue
        missing = Counter(lines) - Counter(arrived)
        extra = Counter(arrived) - Counter(lines)
        place = next((i for i, (a, b) in enumerate(zip(arrived, lines, strict=False)) if a != b), None)
        raise AssertionError(
            f"{who}: {stream}: {len(arrived)} of {len(lines)} events, {missing.total()} missing, "
            f"{extra.total()} too many or altered, first difference at {place}: "
            f"got {arrived[place][:160] if place is not None else None!r}, "
            f"wanted {lines[place][:160] if place is not None else None!r}"
        )


def check_attributes(blocks: Iterable[Block], *, source: str | None = None) -> None:
    """Ids are there and unique per (stream, source); every block carries an SSE id."""
    seen: set[tuple[str, str, str]] = set()
    for block in blocks:
        event = json.loads(block.data)
        assert event["specversion"] == "1.0"
        assert block.id, "a data block without an id"
        identity = (event["cdrsstream"], event["source"], event["id"])
        assert identity not in seen, f"{identity} came twice"
        assert source is None or event["source"] == source
        seen.add(identity)
