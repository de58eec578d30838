"""What a gateway fetches as it starts: the latest records of each partition, so that resuming readers find them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress

from gateway.gaps import losses
from shared.errors import CdrsError, Unavailable
from shared.ports import NodeLink
from shared.records import FeedBatch, PageQuery, Record

PAGE_BYTES = 1024 * 1024
"""Of one partition at most, about: its latest records."""
PATIENCE = 5
PAUSE = 0.1
"""How often a page is asked for once more, and seconds between two attempts."""
TIMEOUT = 2.0
"""Seconds for everything; a start does not wait longer for what is a mere convenience."""

logger = logging.getLogger(__name__)


async def latest(link: NodeLink, ends: Mapping[int, int], count: int) -> dict[int, FeedBatch]:
    """Up to ``count`` offsets before each of these ends; partitions that cannot be read in time are left out."""
    found: dict[int, FeedBatch] = {}

    async def fetch(partition: int, end: int) -> None:
        try:
            batch = await _before(link, partition, end, count)
        except CdrsError as error:
            logger.debug("the latest records of partition %d cannot be had: %s", partition, error)
            return
        if batch is not None:
            found[partition] = batch

    try:
        async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
            for partition, end in ends.items():
                if end and count:
                    group.create_task(fetch(partition, end))
    except TimeoutError:
        logger.warning("the latest records could not be read in time; resuming readers are served from the store")
    return found


async def _before(link: NodeLink, partition: int, end: int, count: int) -> FeedBatch | None:
    """Without a hole up to ``end``; None where that cannot be had in one page."""
    query = PageQuery(partition, max(end - count, 0), end, count, PAGE_BYTES, backwards=True)
    for _ in range(PATIENCE):
        with suppress(Unavailable):  # under load a node is some milliseconds behind the end of its log
            page = await link.page(query)
            break
        await asyncio.sleep(PAUSE)
    else:
        page = await link.page(query)
    # What history has not got is told by whoever reads it there.
    start = max([page.next, *(stop for _, _, stop in losses(page))])
    if start >= end:
        return None
    records: list[Record] = [record for record in reversed(page.records) if record.offset >= start]
    return FeedBatch(partition, start, end, records)
