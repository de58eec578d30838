"""A process that holds two roles looks at the registry once; the other role only beats."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shared.backends.embedded.registry import open_registry
from shared.clock import SystemClock
from shared.membership import Load, Membership
from shared.ports import Member
from shared.settings import Settings


async def test_a_membership_that_does_not_watch_beats_and_joins_again(tmp_path: Path) -> None:
    settings = Settings.model_validate({"registry": {"beat_interval": 0.05}})
    me = Member("n", "1", "node", "", "0", "", 1.0)
    async with open_registry(tmp_path, settings.registry) as registry:
        membership = Membership(registry, settings, SystemClock(), me, Load, watches=False)
        task = asyncio.create_task(membership.run())
        try:
            async with asyncio.timeout(20):
                while me.key not in await registry.beats():
                    await asyncio.sleep(0.01)
                await registry.leave(me)
                while me not in await registry.members():
                    await asyncio.sleep(0.01)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await registry.members() == []
