"""The table of routes: partition → nodes, best first, with the first place held steady. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from shared.detector import NodeState
from shared.partitioning import rendezvous
from shared.ports import Member

SETTLED_AFTER = 1.0
"""Seconds a node must have been live and reachable before it takes partitions from a live one."""
MOVE_INTERVAL = 2.0
"""Seconds between two moves of one partition, unless its node is gone."""

NOBODY: Mapping[str, Collection[int]] = {}

_TIERS = (NodeState.LIVE, NodeState.SUSPECT, NodeState.DEAD, NodeState.DRAINING)
"""A dead node is in the table only while the registry cannot be read and its link still holds."""


class Routable(Protocol):
    """`gateway.routing.NodeHandle`, as far as the table needs it."""

    key: str
    member: Member


H = TypeVar("H", bound=Routable)


@dataclass(slots=True)
class _Route(Generic[H]):
    ranked: tuple[H, ...] = ()
    moved_at: float = field(default=float("-inf"))


class RouteTable(Generic[H]):
    """Who serves which partition."""

    def __init__(self) -> None:
        self._routes: dict[int, _Route[H]] = {}

    def ranked(self, partition: int) -> Sequence[H]:
        """Nodes for a partition, best first."""
        route = self._routes.get(partition)
        return route.ranked if route is not None else ()

    def update(
        self,
        now: float,
        partitions: int,
        nodes: Iterable[tuple[H, NodeState, float | None]],
        strained: Mapping[str, Collection[int]] = NOBODY,
    ) -> tuple[bool, float]:
        """Rank anew. ``nodes`` are the reachable ones, their state, and since when each has been live (monotonic);
        ``strained``: by key, the partitions for which a node says that others of its state should come first.

        A partition keeps its node while that is as good as the best by state, except for a move to a node that has
        been live for `SETTLED_AFTER`, at most every `MOVE_INTERVAL`. Returns whether anything changed, and after how
        many seconds a wish that has to wait can be met.
        """
        tiers: dict[NodeState, dict[str, H]] = {tier: {} for tier in _TIERS}
        settled: dict[str, float] = {}
        for node, state, live_since in sorted(nodes, key=lambda entry: entry[0].key):
            tiers[state][node.key] = node
            settled[node.key] = (now if live_since is None else live_since) + SETTLED_AFTER
        changed, due = False, float("inf")
        for partition in range(partitions):
            route = self._routes.setdefault(partition, _Route())
            order = [(tier, node) for tier in _TIERS for node in _order(partition, tiers[tier])]
            grades = {node.key: (_TIERS.index(tier), partition in strained.get(node.key, ())) for tier, node in order}
            wish = sorted([node for _, node in order], key=lambda node: grades[node.key])
            ranked, wait = _held_steady(now, route, wish, grades, settled)
            due = min(due, wait)
            if ranked != route.ranked:
                if route.ranked and ranked and ranked[0] is not route.ranked[0]:
                    route.moved_at = now
                route.ranked = ranked
                changed = True
        return changed, due


def _order(partition: int, nodes: Mapping[str, H]) -> list[H]:
    """Nodes of one state by rendezvous. Ranked by id, so that a restarted node gets its partitions back."""
    by_id: dict[str, list[H]] = {}
    for node in nodes.values():
        by_id.setdefault(node.member.id, []).append(node)
    weights = [(node_id, max(twins[0].member.capacity, 0.01)) for node_id, twins in by_id.items()]
    return [node for node_id in rendezvous(partition, weights) for node in by_id[node_id]]


def _held_steady(
    now: float,
    route: _Route[H],
    wish: list[H],
    grades: Mapping[str, tuple[int, bool]],
    settled: Mapping[str, float],
) -> tuple[tuple[H, ...], float]:
    current = route.ranked[0] if route.ranked else None
    if current is None or current not in wish or current is wish[0]:
        return tuple(wish), float("inf")
    best = wish[0]
    due = max(settled[best.key], route.moved_at + MOVE_INTERVAL)
    if grades[current.key] != grades[best.key] or now >= due:
        return tuple(wish), float("inf")
    return (current, *(node for node in wish if node is not current)), due - now
