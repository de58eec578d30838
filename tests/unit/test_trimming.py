"""What of a log is let go: `cdrs.retention`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import pytest
from model_log import ModelLog, ModelStore

from cdrs.retention import Trimming, trimmed_to
from shared.settings import RetentionSettings


@pytest.mark.parametrize(
    ("floor", "checkpoint", "keep", "wanted"),
    [
        (0, 10_000, 0, 0),  # nothing is deleted: all stays
        (500, 10_000, 0, 500),
        (9_800, 10_000, 0, 9_000),  # never what judgement begins with
        (500, 900, 0, 0),
        (0, 10_000, 3_000, 7_000),
        (0, 10_000, 10, 9_000),
        (8_000, 10_000, 3_000, 8_000),
        (0, 2_000, 3_000, 0),
    ],
)
def test_the_window_below_the_checkpoint_stays(floor: int, checkpoint: int, keep: int, wanted: int) -> None:
    assert trimmed_to(floor=floor, checkpoint=checkpoint, window=1_000, keep=keep) == wanted


class Trimmed(ModelLog):
    """Notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__(decides_identity=False)
        self.asked: list[dict[int, int]] = []

    async def trim(self, below: Mapping[int, int]) -> None:
        self.asked.append(dict(below))
        self.kept.update(below)


class Floors(ModelStore):
    """A store with these checkpoints and floors."""

    async def checkpoints(self) -> Mapping[int, int]:
        return {0: 50_000, 1: 50_000, 2: 1_500}

    async def starts(self) -> Mapping[int, int]:
        return {0: 20_000, 1: 999, 2: 1_500}


async def test_it_is_asked_for_what_is_worth_it_and_by_one_node() -> None:
    log = Trimmed()
    for is_first, asked in ((False, []), (True, [{0: 20_000}])):
        trimming = Trimming(
            log, Floors(log), RetentionSettings(max_age=1, interval=0.05), window=10_000,
            preferred=lambda partition, is_first=is_first: is_first and partition == 0,  # type: ignore[misc]
        )  # fmt: skip
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await trimming.run()
        assert log.asked == asked
