"""What a started system says of itself."""

from __future__ import annotations

import typer

from shared.settings import Settings, without_password
from shared.version import VERSION


def print_banner(settings: Settings, url: str, *, nodes: int, gateways: int) -> None:
    """Where everything is, how to try it, how to stop it. On stderr."""
    roles = [_several("gateway", gateways)] if nodes or gateways > 1 else ["one process"]
    roles += [_several("node", nodes)] if nodes else []
    shape = ", ".join(roles)
    lines = [
        "",
        f"  cdrs {VERSION}  ready ({shape})",
        "",
        f"  API      {url}/v1/",
        f"  docs     {url}/docs",
        f"  console  {url}/console/",
        *_places(settings),
        "",
        f'  publish    curl --json \'{{"hello":"world"}}\' {url}/v1/streams/demo.hello/events',
        f"  subscribe  curl -N {url}/v1/streams/demo.hello/events",
        "",
        *_access(settings),
        "  Ctrl+C to stop",
        "",
    ]
    typer.echo("\n".join(lines), err=True)


def _several(what: str, count: int) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _places(settings: Settings) -> list[str]:
    if not settings.is_distributed:
        return [f"  data     {settings.data.resolve()}"]
    urls = {"log": settings.log.url, "registry": settings.registry.url, "store": settings.store.url}
    return [f"  {name:8} {without_password(url)}" for name, url in urls.items()]


def _access(settings: Settings) -> list[str]:
    if settings.insecure:
        return ["  WARNING: --insecure: whoever reaches the port may read and write every stream."]
    return ["  No token is needed: it answers on this machine only."]
