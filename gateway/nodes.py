"""``/v1/nodes``: the registry of live processes, as JSON, or as an event stream: the picture, then every change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.event_stream import EventStream
from gateway.negotiation import prefers_json
from gateway.params import Params
from gateway.streams import json_response
from shared.detector import NodeState
from shared.errors import UnknownNode
from shared.member_changes import Change, Subscription
from shared.membership import MemberView, Picture
from shared.sse import bye_block, control_block, retry_block
from shared.timestamps import rfc3339

if TYPE_CHECKING:
    from gateway.context import GatewayContext

MAX_WATCHERS = 256
"""Open streams of this kind; operators are few, and each costs a picture for every change."""
KEEP_ALIVE = b": keep-alive\n\n"
_BYE = Change("bye", "")
_ROUTES = Change("routes", "")
_WHOLE_PICTURE = frozenset({"registry", "reset"})
_FIGURES = ("seq", "cpu", "memory_bytes", "in_flight", "ewma_ms", "lag_records", "connections", "partitions")
"""Members of a heartbeat that are shown as they are; null before the first one."""
_ALIVE_FIRST = (NodeState.LIVE, NodeState.SUSPECT, NodeState.DRAINING, NodeState.DEAD)


def preferred_partitions(context: GatewayContext) -> Mapping[str, Sequence[int]]:
    """`Member.key` → the partitions for which it stands first in the ranking."""
    preferred: dict[str, list[int]] = {}
    router = context.router
    for partition in range(router.partitions if router.is_known else 0):
        for handle in router.ranked(partition)[:1]:
            preferred.setdefault(handle.key, []).append(partition)
    return preferred


def node_document(view: MemberView, preferred: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """One process: what it said when it joined, its last heartbeat, and how this gateway judges it."""
    member, beat = view.member, view.beat
    figures: dict[str, Any] = {name: getattr(beat, name, None) for name in _FIGURES}
    return {
        "id": member.id,
        "incarnation": member.incarnation,
        "role": member.role,
        "url": member.url,
        "version": member.version,
        "zone": member.zone,
        "capacity": member.capacity,
        **figures,
        "state": view.state.value,
        "age_ms": view.age_ms,
        "since": rfc3339(view.since.since_ms),
        "took_ms": view.since.took_ms,
        "preferred": preferred.get(member.key, []),
        "in_set": view.in_set,
        "in_heartbeats": view.in_heartbeats,
    }


def nodes_document(context: GatewayContext, *, node_id: str | None = None) -> dict[str, Any]:
    """The whole picture, or of it the incarnations of one node."""
    picture = context.membership.picture
    preferred = preferred_partitions(context)
    return {
        **_as_of(picture),
        "nodes": [
            node_document(view, preferred)
            for view in picture.members.values()
            if node_id is None or view.member.id == node_id
        ],
    }


def _as_of(picture: Picture) -> dict[str, Any]:
    return {"as_of": rfc3339(picture.as_of_ms) if picture.as_of_ms else None, "registry": picture.registry}


async def list_nodes(request: Request) -> Response:
    """``GET /v1/nodes``."""
    context: GatewayContext = request.app.state.gateway
    Params(request.query_params, known=())
    if prefers_json(request, event_stream_default=False):
        return json_response(nodes_document(context))
    return _event_stream(context, None)


async def one_node(request: Request) -> Response:
    """``GET /v1/nodes/{id}``: of several incarnations the one that is most alive."""
    context: GatewayContext = request.app.state.gateway
    Params(request.query_params, known=())
    node_id: str = request.path_params["id"]
    known = [view for view in context.membership.picture.members.values() if view.member.id == node_id]
    if not known:
        raise UnknownNode("no process with this id stands in the registry")
    if not prefers_json(request, event_stream_default=False):
        return _event_stream(context, node_id)
    view = min(known, key=lambda view: (_ALIVE_FIRST.index(view.state), view.age_ms))
    return json_response(node_document(view, preferred_partitions(context)))


def _event_stream(context: GatewayContext, node_id: str | None) -> Response:
    return EventStream(_watch(context, node_id), settings=context.settings)


async def _watch(context: GatewayContext, node_id: str | None) -> AsyncIterator[bytes]:
    """``cdrs.nodes``: everything; then ``cdrs.node`` for each change. No ids: a reconnect starts with the picture."""
    retry = context.hub.jittered_retry()
    if context.draining or len(context.on_drain) >= MAX_WATCHERS:
        yield retry_block(retry) + bye_block("drain" if context.draining else "overload", retry)
        return
    with context.membership.subscribe() as subscription:

        def wake() -> None:
            subscription.put(_BYE)

        context.on_drain.append(wake)
        routes = context.router.watch(lambda: subscription.put(_ROUTES))
        try:
            teller = _Teller(context, node_id)
            yield retry_block(retry) + teller.picture()
            async for chunk in _changes(context, subscription, teller):
                yield chunk
        finally:
            del routes  # until here it had to be held
            context.on_drain.remove(wake)
    yield bye_block("drain", context.hub.jittered_retry())


async def _changes(context: GatewayContext, subscription: Subscription, teller: _Teller) -> AsyncIterator[bytes]:
    while True:
        changes = await subscription.changes(context.settings.sse.heartbeat)
        if _BYE in changes:
            return
        if any(change.kind in _WHOLE_PICTURE for change in changes):
            yield teller.picture()
        elif not changes:
            yield KEEP_ALIVE
        elif blocks := teller.changes(changes):
            yield blocks


class _Teller:
    """What one watcher is told, and what it was told of the routes."""

    def __init__(self, context: GatewayContext, node_id: str | None) -> None:
        self._context = context
        self._node_id = node_id
        self._told: Mapping[str, Sequence[int]] = {}

    def picture(self) -> bytes:
        """Everything."""
        self._told = preferred_partitions(self._context)
        return control_block("cdrs.nodes", nodes_document(self._context, node_id=self._node_id))

    def changes(self, changes: Sequence[Change]) -> bytes:
        """What changed, and who got or lost partitions by it: a node that dies leaves its own to others, of whom there
        is no other news."""
        picture = self._context.membership.picture
        preferred, told = preferred_partitions(self._context), self._told
        self._told = preferred
        moved = {key for key in preferred.keys() | told.keys() if preferred.get(key) != told.get(key)}
        moved -= {change.key for change in changes}
        news = [change for change in changes if change != _ROUTES] + [Change("load", key) for key in sorted(moved)]
        blocks: list[bytes] = []
        for change in news:
            node_id, _, incarnation = change.key.rpartition("/")
            if self._node_id is not None and node_id != self._node_id:
                continue
            view = picture.members.get(change.key)
            if view is not None:
                node = node_document(view, preferred)
            elif change.kind == "leave":
                node = {"id": node_id, "incarnation": incarnation}
            else:
                continue  # it has left since; that is told by a change of its own
            blocks.append(control_block("cdrs.node", {"change": change.kind, **_as_of(picture), "node": node}))
        return b"".join(blocks)


routes = [
    Route("/v1/nodes", list_nodes, methods=["GET"]),
    Route("/v1/nodes/{id}", one_node, methods=["GET"]),
]
