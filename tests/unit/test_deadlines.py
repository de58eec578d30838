"""Many deadlines on one timer."""

from __future__ import annotations

import asyncio
import time

from model_nodes import eventually

from shared.deadlines import Deadlines


async def test_what_is_still_here_expires_once_in_time_and_the_rest_does_not() -> None:
    expired: list[str] = []
    deadlines: Deadlines[str] = Deadlines(expired.append)
    now = time.monotonic()
    deadlines.add("late", now + 0.05)
    deadlines.add("early", now + 0.01)
    deadlines.add("done", now + 0.01)
    deadlines.add("much later", now + 60)
    deadlines.discard("done")
    deadlines.discard("unknown")
    await eventually(lambda: len(expired) == 2)
    assert time.monotonic() >= now + 0.05
    assert expired == ["early", "late"]
    assert len(deadlines) == 1
    deadlines.close()
    assert len(deadlines) == 0


async def test_what_expires_may_add_and_discard() -> None:
    expired: list[str] = []
    deadlines: Deadlines[str] = Deadlines(lambda item: (expired.append(item), again(item))[0])

    def again(item: str) -> None:
        if item == "first":
            deadlines.discard("second")
            deadlines.add("third", time.monotonic())

    now = time.monotonic()
    deadlines.add("first", now)
    deadlines.add("second", now)
    await eventually(lambda: "third" in expired)
    assert expired == ["first", "third"]
    await asyncio.sleep(0)
    assert len(deadlines) == 0
