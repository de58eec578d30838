"""What balancers, orchestrators and scrapers ask: ``/livez``, ``/readyz``, ``/startupz`` and ``/metrics``."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.asking import ask
from gateway.siblings import merged
from gateway.streams import json_response
from shared.detector import NodeState
from shared.errors import CdrsError
from shared.health import Check, Checks
from shared.membership import MemberView
from shared.ports import STARTING, NodeLink

if TYPE_CHECKING:
    from gateway.context import GatewayContext

LOG_TIMEOUT = 1.0
"""Seconds the log has to say where it ends."""
NODE_TIMEOUT = 0.5
"""Seconds each node has to say what it lacks."""
LOG_EVERY = 1.0
"""Seconds between two such questions, however often probes come."""


class Health:
    """The state of one gateway's surroundings."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._checks = Checks(context.clock)
        self._ends: Mapping[int, int] = {}
        self._log_trouble = "not asked yet"
        self._log_asked = float("-inf")
        self._asked_started = False
        """Whether the gateway had come up then."""
        self._shown: set[str] = set()
        """Parts that were once missing, in this very process or in the nodes."""
        self._troubles: dict[str, str] = {}
        """What nodes that serve say they lack."""
        self._troubled: set[str] = set()
        """What was among them once."""
        self._asking = asyncio.Lock()

    @property
    def started(self) -> bool:
        """A node was reached and its log is known."""
        return self._context.hub.started

    async def look(self) -> Mapping[str, Check]:
        """Bring the checks up to date."""
        await self._ask_log()
        checks, membership = self._checks, self._context.membership
        if self._context.vitals is not None:
            self._context.vitals.tell(checks)
        picture = membership.picture
        missing = dict(self._context.missing)
        starting = _alive(picture.members.values(), STARTING)
        nodes = Counter(view.state for view in picture.members.values() if view.member.role == "node")
        if not nodes[NodeState.LIVE]:
            for view in starting:
                missing |= view.beat.waits if view.beat is not None else {}
        checks.set("log", trouble=self._log_trouble and missing.get("log", self._log_trouble), fine=self._log_size())
        trouble = membership.trouble
        checks.set("registry", trouble=trouble and f"{trouble}; the last picture holds", fine="read")
        said = [f"{nodes[state]} {state.value}" for state in NodeState if nodes[state]]
        said += [f"{len(starting)} starting"] if starting else []
        shown = ", ".join(said) or "none"
        checks.set("nodes", trouble="" if set(nodes) == {NodeState.LIVE} else shown, fine=shown)
        behind = sum(self.feed_lag().values())
        detail = f"{behind} records behind the log" if self.started else "not started"
        near = self.started and behind <= self._context.settings.sse.ring_records
        checks.set("feed", trouble="" if near else detail, fine=detail)
        for name in self._troubled.union(self._troubles):
            checks.set(name, trouble=self._troubles.get(name, ""), fine="as it should be")
        self._troubled |= self._troubles.keys()
        for name in missing.keys() - {"log"}:
            checks.set(name, trouble=missing[name], fine="")
        for name in self._shown - missing.keys() - {"log"}:
            checks.set(name, trouble="", fine="reached")
        self._shown |= missing.keys()
        checks.looked(self._context.telemetry)
        return checks.found

    def _log_size(self) -> str:
        return f"{sum(self._ends.values())} records"

    def feed_lag(self) -> dict[int, int]:
        """Per partition, how far this gateway's feed was behind the log's end when the log was last asked."""
        if not self.started:
            return {}
        fed = self._context.hub.vector.next
        return {partition: max(end - fed.get(partition, 0), 0) for partition, end in self._ends.items()}

    def status(self) -> str:
        """``ok``; ``degraded``: it serves, but something is amiss; ``unavailable``: send nothing here."""
        if self._context.draining or not self.started or not self._checks.is_ok("log"):
            return "unavailable"
        return "ok" if self._checks.all_ok else "degraded"

    async def _ask_log(self) -> None:
        async with self._asking:
            is_recent = self._context.clock.monotonic() - self._log_asked < LOG_EVERY
            if is_recent and self._asked_started == self.started:
                return
            self._asked_started = self.started
            try:
                async with asyncio.timeout(LOG_TIMEOUT):
                    self._ends = await ask(self._context.router, lambda link: link.ends(), timeout=LOG_TIMEOUT / 2)
                self._log_trouble = ""
                self._troubles = await self._ask_nodes()
            except CdrsError as error:
                self._log_trouble = error.detail or error.title
            except TimeoutError:
                self._log_trouble = f"no answer within {LOG_TIMEOUT:.0f} s"
            self._log_asked = self._context.clock.monotonic()

    async def _ask_nodes(self) -> dict[str, str]:
        """What the nodes lack, by name; where several lack the same, the first in rank tells."""
        handles = self._context.router.ranked(0)
        answers = await asyncio.gather(*[self._lacks(handle.link) for handle in handles])
        found: dict[str, str] = {}
        for handle, troubles in zip(handles, answers, strict=True):
            for name, detail in troubles.items():
                found.setdefault(name, f"{handle.key}: {detail}")
        return found

    @staticmethod
    async def _lacks(link: NodeLink) -> Mapping[str, str]:
        try:
            async with asyncio.timeout(NODE_TIMEOUT):
                return (await link.info()).troubles
        except (CdrsError, TimeoutError):
            return {}  # that it is gone or hangs is told by other checks


def _alive(views: Iterable[MemberView], role: str) -> list[MemberView]:
    return [view for view in views if view.member.role == role and view.state is not NodeState.DEAD]


def health_of(request: Request) -> Health:
    """The gateway's one `Health`."""
    health: Health = request.app.state.health
    return health


async def livez(_request: Request) -> Response:
    """The process answers. Says nothing about anything else: a restart would not cure it."""
    return json_response({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Whether to send requests here; with ``?verbose``, why (not)."""
    health = health_of(request)
    checks = await health.look()
    status = health.status()
    answer: dict[str, object] = {"status": status}
    if "verbose" in request.query_params:
        siblings = request.app.state.gateway.siblings
        if siblings is not None:
            answer["worker"] = siblings.name
        answer["draining"] = request.app.state.gateway.draining
        answer["checks"] = checks
    return json_response(answer, status=503 if status == "unavailable" else 200)


async def startupz(request: Request) -> Response:
    """Whether the gateway has come up; never takes it back."""
    started = health_of(request).started
    return json_response({"status": "ok" if started else "starting"}, status=200 if started else 503)


def _at_common_port(request: Request) -> bool:
    context: GatewayContext = request.app.state.gateway
    return not context.membership.me.url.endswith(f":{request.scope['server'][1]}")


async def metrics(request: Request) -> Response:
    """Everything that is counted, for Prometheus: by this process, and at a port that it shares also by the others
    there. Which of them a scrape reaches is chance, so each answers for all."""
    context: GatewayContext = request.app.state.gateway
    health = health_of(request)
    await health.look()
    views = context.membership.picture.members.values()
    context.telemetry.registry_nodes(Counter((view.member.role, view.state.value) for view in views))
    context.telemetry.consumer_lag(health.feed_lag())
    accept = request.headers.get("accept", "")
    body, content_type = context.telemetry.render(accept)
    if context.siblings is not None and _at_common_port(request):
        body = merged([body, *await context.siblings.metrics(accept)])
    return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})


routes = [
    Route("/livez", livez, methods=["GET"]),
    Route("/readyz", readyz, methods=["GET"]),
    Route("/startupz", startupz, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
]
