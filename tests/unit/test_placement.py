"""`gateway.placement`: one request routes the events of a stream by one spread."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from fake_dispatcher import FakeContext
from model_log import event

from gateway.placement import settle, submit
from gateway.submission import Chain
from shared.errors import InternalError
from shared.events import Draft
from shared.records import Settlement


@pytest.fixture
def context() -> Any:
    return FakeContext()


def draft(number: int, spread: int) -> Draft:
    return Draft(str(number), msgspec.structs.replace(event(number, key="k"), spread=spread))


def spreads(context: Any) -> list[int]:
    """Of what was stored, in the order of the events."""
    return [stored.spread for stored in sorted(context.dispatcher.events(), key=lambda stored: stored.value)]


async def test_what_the_catalog_learns_in_the_middle_of_a_request_reroutes_nothing(context: Any) -> None:
    """The second event of a key would go another way than the first, which is still under way."""
    chain = Chain()
    await submit(context, [draft(1, spread=1)], chain)
    context.catalog.known["orders"] = 4
    await submit(context, [draft(2, spread=4)], chain)
    assert spreads(context) == [1, 1]
    assert len(context.dispatcher.log) == 1
    chain.spreads.clear()  # nothing is under way any more
    await submit(context, [draft(3, spread=4)], chain)
    assert spreads(context) == [1, 1, 4]


async def test_a_batch_built_while_the_catalog_learns_goes_one_way(context: Any) -> None:
    context.catalog.known["orders"] = 4
    await submit(context, [draft(1, spread=1), draft(2, spread=4)])
    assert spreads(context) == [4, 4]


async def test_what_no_node_can_be_asked_about_keeps_its_problem(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_stream: str) -> None:
        raise InternalError("a node failed")

    stale = Settlement(problem="stale-stream")
    context.dispatcher.judge = lambda _event: stale
    monkeypatch.setattr(context.catalog, "refresh", fails)
    drafts = [draft(1, spread=1), draft(2, spread=1)]
    assert await settle(context, drafts, await submit(context, drafts)) == [stale, stale]
