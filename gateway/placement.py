"""From built events to settled ones: which partition each goes to, the dispatcher, and streams with stale settings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from shared.errors import StaleStream, Unavailable
from shared.events import SPREAD_UNKNOWN, Draft
from shared.partitioning import partition_of
from shared.records import NewEvent, Settlement

if TYPE_CHECKING:
    from gateway.context import GatewayContext
    from gateway.submission import Chain

STALE_RETRIES = 2
"""How often events are routed anew after a stream turned out to have another spread."""


class Pending(Protocol):
    """`gateway.dispatch.Submission`, as far as it is needed here."""

    results: list[Settlement | None]

    async def wait(self) -> None: ...

    def expire(self) -> None: ...


async def submit(context: GatewayContext, drafts: Sequence[Draft], chain: Chain | None = None) -> Pending:
    """Hand events to the dispatcher, in order; ``chain``: of a request that does so more than once. Raises `Overloaded`
    or `Unavailable`: nothing of it will be stored."""
    timeout = context.settings.gateway.produce_timeout
    routes = {(draft.event.stream, draft.event.spread) for draft in drafts}
    unknown = {stream for stream, spread in routes if spread == SPREAD_UNKNOWN}
    if unknown:
        await context.catalog.learn(unknown)
    if len(routes) == 1 and drafts[0].event.spread == 1:  # as a rule: one stream, which stands in one partition
        home = partition_of(drafts[0].event.stream, None, "", partitions=context.router.partitions)
        return context.dispatcher.submit_run(home, [draft.event for draft in drafts], timeout=timeout, chain=chain)
    return context.dispatcher.submit(_placed(context, drafts, routes), timeout=timeout, chain=chain)


def _placed(
    context: GatewayContext, drafts: Sequence[Draft], routes: Collection[tuple[str, int]]
) -> list[tuple[int, NewEvent]]:
    """Each event behind its partition; ``routes`` are the streams and spreads among them."""
    partitions = context.router.partitions
    homes = {stream: partition_of(stream, None, "", partitions=partitions) for stream, spread in routes if spread <= 1}
    placed: list[tuple[int, NewEvent]] = []
    for draft in drafts:
        event = draft.event
        if event.spread == SPREAD_UNKNOWN:
            event = msgspec.structs.replace(event, spread=context.catalog.cached_spread(event.stream) or 1)
        if event.spread == 1:
            placed.append((homes[event.stream], event))
            continue
        partition = partition_of(event.stream, event.key, draft.id, partitions=partitions, spread=event.spread)
        placed.append((partition, event))
    return placed


def submit_one(context: GatewayContext, draft: Draft, done: Callable[[], None]) -> Pending:
    """Hand one event, whose stream's spread is known, to the dispatcher; ``done`` is called once it is settled, be it
    by its deadline. Raises as `submit` does."""
    event, router = draft.event, context.router
    partition = partition_of(event.stream, event.key, draft.id, partitions=router.partitions, spread=event.spread)
    return context.dispatcher.submit_one(partition, event, timeout=context.settings.gateway.produce_timeout, done=done)


async def settle(
    context: GatewayContext, drafts: Sequence[Draft], pending: Pending, *, renew: bool = True
) -> Sequence[Settlement]:
    """Wait for the settlements of submitted events, one for each, in order. Bounded by the produce timeout.

    Events that were routed by a spread that is not the stream's (somebody created it at this very moment) are routed
    anew, unless ``renew`` is false; nothing of them was stored.
    """
    await pending.wait()
    results = _settled(pending)
    for _ in range(STALE_RETRIES if renew else 0):
        stale = [index for index, settlement in enumerate(results) if settlement.problem == StaleStream.problem]
        if not stale:
            break
        try:
            again = [await _renewed(context, drafts[index]) for index in stale]
            pending = await submit(context, again)
        except Unavailable:
            break
        await pending.wait()
        for index, settlement in zip(stale, _settled(pending), strict=True):
            results[index] = settlement
    note_stored(context, drafts, results)
    return results


def note_stored(context: GatewayContext, drafts: Sequence[Draft], results: Sequence[Settlement]) -> None:
    """Let the catalog know of streams that exist by now."""
    if context.catalog.has_absent:
        settled = zip(drafts, results, strict=True)
        context.catalog.stored({draft.event.stream for draft, result in settled if not result.problem})


async def _renewed(context: GatewayContext, draft: Draft) -> Draft:
    stream = draft.event.stream
    if context.catalog.cached_spread(stream) == draft.event.spread:
        await context.catalog.refresh(stream)
    return Draft(draft.id, msgspec.structs.replace(draft.event, spread=SPREAD_UNKNOWN))


def _settled(pending: Pending) -> list[Settlement]:
    settled = [settlement for settlement in pending.results if settlement is not None]
    assert len(settled) == len(pending.results), "a submission that was waited for is settled"
    return settled
