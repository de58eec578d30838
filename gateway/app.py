"""The gateway as one ASGI application: every address it answers, in one place."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from gateway import console_page, docs_pages, nodes, openapi, pages, probes, problems, produce, streams, subscribe
from gateway.context import GatewayContext
from shared.errors import CdrsError

logger = logging.getLogger(__name__)

_PRODUCE = re.compile("/v1/(?:streams/([^/]+)/)?events")
ALLOWED_HEADERS = ("*", "last-event-id")
EXPOSED_HEADERS = ("cdrs-cursor", "etag", "location", "retry-after", "ratelimit", "ratelimit-policy")


def all_routes() -> Sequence[BaseRoute]:
    """Every route, first match first."""

    def home(_request: object) -> RedirectResponse:
        return RedirectResponse("/console/")

    return (
        *produce.routes,
        *subscribe.routes,
        *pages.routes,
        *streams.routes,
        *nodes.routes,
        *probes.routes,
        *openapi.routes,
        *docs_pages.routes,
        *problems.routes,
        *console_page.routes,
        Route("/", home, include_in_schema=False),
    )


class GatewayApp(Starlette):
    """The application, with a short way for producers: what they POST skips router and middleware, which cost as much
    as the rest of a single event. Without CORS only, as that is a middleware."""

    has_short_way = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = _PRODUCE.fullmatch(scope["path"]) if self.has_short_way and scope.get("method") == "POST" else None
        if match is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        request = Request(scope, receive)
        try:
            response = await produce.produce(request, match[1])
        except Exception as error:  # as the middleware would: logged, and answered with 500
            logger.exception("a produce request failed")
            response = await problems.unexpected(request, error)
        try:
            await response(scope, receive, send)
        except CdrsError as error:  # found while the answer was made, before any of it was sent
            await problems.problem_response(error, instance=scope["path"])(scope, receive, send)


def create_app(context: GatewayContext) -> GatewayApp:
    """The application of one gateway process."""
    gateway = context.settings.gateway
    app = GatewayApp(
        routes=list(all_routes()),
        exception_handlers=problems.exception_handlers,
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=gateway.cors_origins,
                allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
                allow_headers=list(ALLOWED_HEADERS),
                expose_headers=list(EXPOSED_HEADERS),
                allow_credentials=False,
                max_age=7200,
            )
        ]
        if gateway.cors_origins
        else [],
    )
    app.state.gateway = context
    app.state.health = probes.Health(context)
    app.has_short_way = not gateway.cors_origins
    return app
