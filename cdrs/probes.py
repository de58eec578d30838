"""What balancers, orchestrators and scrapers ask a node, from its first moment on, also while it waits for its servers:
``/livez``, ``/readyz[?verbose]``, ``/startupz`` and ``/metrics``. The same answers as a gateway's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from shared.clock import Clock
from shared.health import Checks, keep_looking

if TYPE_CHECKING:
    from cdrs.node import Node
    from shared.membership import Membership
    from shared.telemetry import Telemetry
    from shared.vitals import Vitals

PATHS = frozenset({"/livez", "/readyz", "/startupz", "/metrics"})
JSON = "application/json"

Answer = tuple[int, bytes, str]
"""Status, body, content type."""


class NodeHealth:
    """The state of one node's surroundings."""

    def __init__(self, clock: Clock, telemetry: Telemetry | None = None, vitals: Vitals | None = None) -> None:
        self.missing: dict[str, str] = {}
        """``log`` or ``store`` → what was tried, while it cannot be reached for the first time."""
        self.node: Node | None = None
        """There once what was missing has been reached."""
        self.membership: Membership | None = None
        self._checks = Checks(clock)
        self._telemetry = telemetry
        self._vitals = vitals
        self._started = False
        self._troubled: set[str] = set()
        """What the node once lacked although it served."""

    async def keep_looking(self) -> None:
        """See `shared.health.keep_looking`."""

        async def look() -> None:
            self.look()

        await keep_looking(look)

    def look(self) -> str:
        """Bring the checks up to date; ``ok``, ``degraded`` (it serves, but something is amiss) or ``unavailable``."""
        checks = self._checks
        if self._vitals is not None:
            self._vitals.tell(checks)
        if self.membership is not None:
            checks.set("registry", trouble=self.membership.trouble, fine="read")
        for name, detail in self.missing.items():
            checks.set(name, trouble=detail, fine="")
        node = self.node
        if node is None:
            return "unavailable"
        for name, trouble in node.needs.items():
            checks.set(name, trouble=trouble, fine="answers")
        self._troubled |= node.troubles.keys()
        for name in self._troubled:
            checks.set(name, trouble=node.troubles.get(name, ""), fine="as it should be")
        lag = sum(node.lag.values())
        self._started = self._started or node.is_caught_up
        checks.set("tail", trouble="" if node.is_caught_up else _behind(lag), fine=_behind(lag))
        checks.looked(self._telemetry)
        if not node.is_ready or not checks.is_ok("log"):
            return "unavailable"
        return "ok" if checks.all_ok else "degraded"

    def answer(self, path: str, query: bytes, accept: str) -> Answer:
        """Answer one of `PATHS`."""
        if path == "/livez":
            return _json(200, {"status": "ok"})
        status = self.look()
        if path == "/metrics":
            if self._telemetry is None:
                return 404, b"", "text/plain"
            body, content_type = self._telemetry.render(accept)
            return 200, body, content_type
        if path == "/startupz":
            return _json(200 if self._started else 503, {"status": "ok" if self._started else "starting"})
        told: dict[str, Any] = {"status": status}
        if "verbose" in parse_qs(query.decode("latin-1"), keep_blank_values=True):
            told["draining"] = self.node is not None and self.node.is_draining
            told["checks"] = self._checks.found
        return _json(503 if status == "unavailable" else 200, told)

    async def serve(self, scope: Any, send: Callable[[Any], Any]) -> None:
        """The same as an ASGI answer to a GET or HEAD; anything else is 405."""
        if scope["method"] not in {"GET", "HEAD"}:
            status, body, kind = 405, b"", "text/plain"
        else:
            accept = b",".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
            status, body, kind = self.answer(scope["path"], scope.get("query_string", b""), accept)
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _behind(records: int) -> str:
    return f"{records} records behind the log"


def _json(status: int, value: Any) -> Answer:
    return status, msgspec.json.encode(value), JSON
