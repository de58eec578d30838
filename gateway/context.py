"""What the handlers of one gateway process share; composed by `services.launcher`, reached as ``app.state.gateway``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from gateway.bodies import BodyRoom
from gateway.turnstile import Turnstile

if TYPE_CHECKING:
    from starlette.requests import Request

    from gateway.dispatch import Dispatcher
    from gateway.feeds import FeedManager
    from gateway.hub import Hub
    from gateway.replay import HistoryReader
    from gateway.routing import Router
    from gateway.siblings import Siblings
    from gateway.streams import StreamCatalog
    from shared.clock import Clock
    from shared.membership import Membership
    from shared.settings import Settings
    from shared.telemetry import Telemetry
    from shared.vitals import Vitals


SUBSCRIBERS_A_TURN = 16
"""Subscriptions placed in one turn of the event loop; each takes a quarter to half a millisecond."""
BATCHES_A_TURN = 2
"""Batches taken apart in one turn of the event loop, so that what runs goes on meanwhile."""


@dataclass(slots=True)
class GatewayContext:
    """One gateway's collaborators."""

    settings: Settings
    clock: Clock
    telemetry: Telemetry
    membership: Membership
    router: Router
    dispatcher: Dispatcher
    feeds: FeedManager
    hub: Hub
    history: HistoryReader
    catalog: StreamCatalog
    version: str
    turnstile: Turnstile = field(default_factory=lambda: Turnstile(SUBSCRIBERS_A_TURN))
    """Where new subscriptions wait when many come at once."""
    builders: Turnstile = field(default_factory=lambda: Turnstile(BATCHES_A_TURN))
    """Where batches wait for being taken apart when many come at once."""
    bodies: BodyRoom = field(default_factory=BodyRoom)
    """Room for what producers send."""
    draining: bool = False
    """The process is about to leave: /readyz says so, new subscriptions are sent elsewhere."""
    missing: Mapping[str, str] = field(default_factory=dict[str, str])
    """What this very process needs and has not reached yet: name → what was tried."""
    vitals: Vitals | None = None
    """How this very process does."""
    siblings: Siblings | None = None
    """The other gateway processes on this one's port, if there are any."""
    on_drain: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    """Called once when draining begins, for streams that the hub does not know."""

    @classmethod
    def of(cls, request: Request) -> GatewayContext:
        """The context of the gateway that serves a request."""
        return cast("GatewayContext", request.app.state.gateway)

    def begin_drain(self) -> None:
        """Stop looking ready. Idempotent."""
        if not self.draining:
            self.draining = True
            for callback in self.on_drain:
                callback()
