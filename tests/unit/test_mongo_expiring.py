"""What a piece of retention must not do when another node was there first. The database is a list of what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared.backends.mongo import expiring, queries
from shared.backends.mongo.documents import Document, partition_key, position_key
from shared.position import Epoch

KEY = partition_key(Epoch(1, 7), 0)
NOW = 1000


class Forgetting(expiring.Expiring):
    """Is given the shadows that each read finds, and keeps what it writes."""

    def __init__(self, *reads: Sequence[Document]) -> None:
        self._keys = [KEY]
        self.reads = list(reads)
        self.written: list[str] = []

    async def _read(self, query: queries.Query) -> list[Document]:
        return list(self.reads.pop(0))

    async def _write(self, collection: str, requests: Sequence[Any]) -> None:
        self.written.append(collection)


def shadow(offset: int, until_ms: int) -> Document:
    return {"_id": position_key(KEY, offset), "u": until_ms}


STATE = {"next": 600, "cleared": 600, "gone": 10}


async def test_shadows_are_kept_where_somebody_else_has_deleted_those_that_were_over() -> None:
    young = [shadow(offset, NOW + 1) for offset in range(100, 100 + expiring.PIECE)]
    forgetting = Forgetting([shadow(10, NOW - 1)], young)
    assert not await forgetting._forget(0, STATE, NOW)
    assert forgetting.written == []


async def test_shadows_that_are_over_go_up_to_the_first_that_is_not() -> None:
    found = [shadow(10, NOW - 1), shadow(11, NOW - 1), shadow(12, NOW + 1)]
    forgetting = Forgetting(found[:1], found)
    assert await forgetting._forget(0, STATE, NOW)
    assert forgetting.written == ["floors", "events"]
