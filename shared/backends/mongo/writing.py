"""Carrying a batch into the database. Each step may be done any number of times, by any number of writers at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from shared.backends.mongo.documents import (
    CHECKPOINTS,
    EVENTS,
    STREAMS,
    Document,
    as_second_copy,
    counting,
    documents_of,
    tally,
)
from shared.backends.mongo.driver import Calls, Database, all_of, is_duplicate, is_same_position, told
from shared.errors import OutcomeUnknown
from shared.records import FeedBatch

logger = logging.getLogger(__name__)


Keyed = tuple[bytes, FeedBatch]
"""A batch, behind the key of its partition."""


async def write_events(database: Database, calls: Calls, batches: Sequence[Keyed]) -> None:
    """One document for each offset; those that are there already are left as they are. Returns when a majority has all
    of them: also what another writer inserted, as the server makes even a refused insert wait for what refused it."""
    again = await _insert(database, calls, [one for key, batch in batches for one in documents_of(key, batch)])
    if again:
        logger.warning(
            "%d events are second copies, appended while look-ups were skipped: %s",
            len(again),
            ", ".join(f"partition {batch.partition} [{batch.start}, {batch.next})" for _, batch in batches),
        )
        left = await _insert(database, calls, [as_second_copy(document) for document in again])
        if left:
            raise OutcomeUnknown("second copies were refused as copies")


async def _insert(database: Database, calls: Calls, documents: Sequence[Document]) -> list[Document]:
    """Insert in any order; those that were refused because their identity stands at another position."""

    async def insert() -> list[Document]:
        try:
            await database[EVENTS].insert_many(documents, ordered=False)
        except BulkWriteError as error:
            return refused_copies(error, documents)
        return []

    return await calls.write(insert)


def refused_copies(error: BulkWriteError, documents: Sequence[Document]) -> list[Document]:
    """Those that were refused because their identity stands at another position. Raises what is anything else."""
    details = cast("dict[str, Any]", error.details)
    if details.get("writeConcernErrors"):
        raise error
    refused: list[Document] = []
    problems: list[dict[str, Any]] = details.get("writeErrors", [])
    for problem in problems:
        if not is_duplicate(problem):
            raise error
        if not is_same_position(problem):
            refused.append(documents[int(problem["index"])])
    return refused


async def write_tallies(database: Database, calls: Calls, batches: Sequence[Keyed]) -> None:
    """Count the batches' records in their streams (`documents.counting` says why none counts twice)."""
    requests = [
        UpdateOne({"_id": name}, counting(key, added), upsert=True)
        for key, batch in batches
        for name, added in tally(batch.records).items()
    ]
    if not requests:
        return

    async def update() -> None:
        try:
            await database[STREAMS].bulk_write(requests, ordered=False)
        except BulkWriteError as error:
            # Two upserts of one new stream met; the second time it is there.
            logger.debug("counting once more: %s", told(error))
            await database[STREAMS].bulk_write(requests, ordered=False)

    await calls.write(update)


async def move_checkpoints(database: Database, calls: Calls, batches: Sequence[Keyed]) -> list[FeedBatch]:
    """Raise each batch's checkpoint to its ``next`` unless it lies below its ``start``; those where it does."""

    async def move(some: Sequence[Keyed]) -> int:
        requests = [
            UpdateOne({"_id": key, "next": {"$gte": one.start}}, {"$max": {"next": one.next}}, upsert=one.start == 0)
            for key, one in some
        ]
        try:
            result = await database[CHECKPOINTS].bulk_write(requests, ordered=False)
        except BulkWriteError as error:
            # Two upserts of a first checkpoint met; the second time it is there.
            logger.debug("moving checkpoints once more: %s", told(error))
            result = await database[CHECKPOINTS].bulk_write(requests, ordered=False)
        return int(result.matched_count) + int(result.upserted_count)

    if await calls.write(lambda: move(batches)) == len(batches):
        return []
    # Which of them is not told; to move one again does no harm.
    moved = await all_of(*[calls.write(partial(move, [one])) for one in batches])
    return [batch for (_, batch), count in zip(batches, moved, strict=True) if not count]
