"""What the pages for people share: a strict content security policy and the files they load."""

from __future__ import annotations

import hashlib
from importlib import resources

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from shared.errors import NotFound

_POLICY = (
    "default-src 'none'; {scripts}style-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SCRIPTS = "script-src 'self'; connect-src 'self'; "
_TYPES = {"console.css": "text/css", "console.js": "text/javascript"}


def read(name: str) -> str:
    """A file of the console's folder, as shipped."""
    return resources.files("gateway").joinpath("console", name).read_text(encoding="utf-8")


def page(html: str, *, scripts: bool) -> Response:
    """A page that may load only what this server ships, and no script unless it says so."""
    return HTMLResponse(
        html,
        headers={
            "content-security-policy": _POLICY.format(scripts=_SCRIPTS if scripts else ""),
            "x-content-type-options": "nosniff",
            "referrer-policy": "same-origin",
            "cache-control": "no-store",
        },
    )


async def asset(request: Request) -> Response:
    """One of the shipped files; browsers ask again each time, and are told when nothing has changed."""
    name: str = request.path_params["file"]
    media_type = _TYPES.get(name)
    if media_type is None:
        raise NotFound("there is no such file")
    body = _FILES[name]
    etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    headers = {"etag": etag, "cache-control": "no-cache", "x-content-type-options": "nosniff"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)


_FILES = {name: read(name).encode() for name in _TYPES}
