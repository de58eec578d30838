"""From built events to settled ones: which partition each goes to, the dispatcher, and streams with stale settings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from shared.errors import CdrsError, StaleStream
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
    routes = _routes(drafts)
    unknown = {stream for stream, spread in routes if spread == SPREAD_UNKNOWN}
    if unknown:
        await context.catalog.learn(unknown)
    return _submit(context, drafts, routes, chain, None)


def submit_known(
    context: GatewayContext, drafts: Sequence[Draft], chain: Chain, done: Callable[[], None]
) -> Pending | None:
    """The same without waiting; ``done`` is called once all are settled, be it by their deadline. None, and nothing
    was done, where the spread of a stream is not known."""
    routes = _routes(drafts)
    if any(spread == SPREAD_UNKNOWN for _, spread in routes):
        return None
    return _submit(context, drafts, routes, chain, done)


def _routes(drafts: Sequence[Draft]) -> Collection[tuple[str, int]]:
    return {(draft.event.stream, draft.event.spread) for draft in drafts}


def _submit(
    context: GatewayContext,
    drafts: Sequence[Draft],
    routes: Collection[tuple[str, int]],
    chain: Chain | None,
    done: Callable[[], None] | None,
) -> Pending:
    timeout = context.settings.gateway.produce_timeout
    spreads = _agreed(context, routes, {} if chain is None else chain.spreads)
    first = drafts[0].event.stream
    if len(routes) == 1 and spreads[first] == 1:  # as a rule: one stream, which stands in one partition
        home = partition_of(first, None, "", partitions=context.router.partitions)
        is_routed = drafts[0].event.spread == 1
        events = [draft.event if is_routed else _routed(draft.event, 1) for draft in drafts]
        return context.dispatcher.submit_run(home, events, timeout=timeout, chain=chain, done=done)
    return context.dispatcher.submit(_placed(context, drafts, spreads), timeout=timeout, chain=chain, done=done)


def _agreed(context: GatewayContext, routes: Collection[tuple[str, int]], spreads: dict[str, int]) -> Mapping[str, int]:
    """The one spread by which all events of a stream are routed in a request; ``spreads`` are those it was begun with.

    The catalog may learn another one in the middle, and events of one key that go two ways have no order."""
    for stream, spread in routes:
        if stream not in spreads:
            spreads[stream] = context.catalog.cached_spread(stream) or spread or 1
    return spreads


def _placed(context: GatewayContext, drafts: Sequence[Draft], spreads: Mapping[str, int]) -> list[tuple[int, NewEvent]]:
    """Each event behind its partition."""
    partitions = context.router.partitions
    homes: dict[str, int] = {}
    placed: list[tuple[int, NewEvent]] = []
    for draft in drafts:
        stream = draft.event.stream
        spread = spreads[stream]
        event = _routed(draft.event, spread)
        if spread > 1:
            partition = partition_of(stream, event.key, draft.id, partitions=partitions, spread=spread)
        elif stream in homes:
            partition = homes[stream]
        else:
            partition = homes[stream] = partition_of(stream, None, "", partitions=partitions)
        placed.append((partition, event))
    return placed


def _routed(event: NewEvent, spread: int) -> NewEvent:
    return event if event.spread == spread else msgspec.structs.replace(event, spread=spread)


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
            pending = await submit(context, await _renewed(context, [drafts[index] for index in stale]))
        except CdrsError:  # they stay what they are: not stored, and to be sent again
            break
        await pending.wait()
        for index, settlement in zip(stale, _settled(pending), strict=True):
            results[index] = settlement
    _conclude(context, drafts, results)
    return results


def settled_at_once(context: GatewayContext, drafts: Sequence[Draft], pending: Pending) -> Sequence[Settlement] | None:
    """`settle` of what is settled already; None where events have to be routed anew, which takes waiting."""
    results = _settled(pending)
    if StaleStream.problem in [settlement.problem for settlement in results]:
        return None
    _conclude(context, drafts, results)
    return results


def _conclude(context: GatewayContext, drafts: Sequence[Draft], results: list[Settlement]) -> None:
    note_stored(context, drafts, results)
    for index, settlement in enumerate(results):
        if settlement.duplicate:
            results[index] = own(drafts[index], settlement)


def own(draft: Draft, settlement: Settlement) -> Settlement:
    """The copy of an event whose id was made for this very request is an earlier attempt of our own: to its producer it
    is new."""
    is_own = settlement.duplicate and draft.event.fresh
    return msgspec.structs.replace(settlement, duplicate=False) if is_own else settlement


def note_stored(context: GatewayContext, drafts: Sequence[Draft], results: Sequence[Settlement]) -> None:
    """Let the catalog know of streams that exist by now."""
    if context.catalog.has_absent:
        settled = zip(drafts, results, strict=True)
        context.catalog.stored({draft.event.stream for draft, result in settled if not result.problem})


async def _renewed(context: GatewayContext, drafts: Sequence[Draft]) -> list[Draft]:
    """The same, to be routed by what a node says now."""
    for stream in dict.fromkeys(draft.event.stream for draft in drafts):
        await context.catalog.refresh(stream)
    return [Draft(draft.id, msgspec.structs.replace(draft.event, spread=SPREAD_UNKNOWN)) for draft in drafts]


def _settled(pending: Pending) -> list[Settlement]:
    settled = [settlement for settlement in pending.results if settlement is not None]
    assert len(settled) == len(pending.results), "a submission that was waited for is settled"
    return settled
