"""`cdrs up`, `cdrs gateway`, `cdrs node`: the servers in the foreground.

What only some of them need is imported where it is used: the launcher brings whole servers, the demo an HTTP client.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.options import (
    ConfigOption,
    DataOption,
    HostOption,
    InsecureOption,
    LevelOption,
    ListenFdOption,
    NodePortOption,
    OwnFdOption,
    PortOption,
    SiblingsOption,
    SupervisedOption,
    WorkersOption,
)
from services.doors import Inherited, gateway_count, gateway_doors
from services.listening import require_gateway
from services.process import Main, OnReady, run_server
from services.supervisor import Supervisor, announce_ready
from shared.settings import Settings, load_settings, setting_fields


def up(
    *,
    nodes: Annotated[
        int, typer.Option("--nodes", "-n", min=0, max=64, help="Node processes beside the gateway; 0 = one process.")
    ] = 0,
    gateways: Annotated[
        int | None,
        typer.Option(
            "--gateways",
            "-g",
            min=0,
            max=256,
            help="Gateway processes on one port; 0: one for each CPU. Several need a node beside them. [default: 1]",
            show_default=False,
        ),
    ] = None,
    host: HostOption = None,
    port: PortOption = None,
    data: DataOption = None,
    restart: Annotated[bool, typer.Option("--restart/--no-restart", help="Start dead children again.")] = True,
    demo: Annotated[bool, typer.Option("--demo", help="Play sample events into it.")] = False,
    demo_rate: Annotated[
        float, typer.Option("--demo-rate", min=0, help="Events a second of the demo; 0 = as fast as it goes.")
    ] = 500.0,
    insecure: InsecureOption = False,
    config: ConfigOption = None,
    log_level: LevelOption = None,
) -> None:
    """Start everything, in the foreground: in one process, or gateway and node processes."""
    flags = _flags("gateway", host, port, data, insecure=insecure, log_level=log_level)
    flags["gateway.workers"] = gateways
    settings = load_settings(config, os.environ, flags)
    if settings.gateway.workers != 1:
        nodes = max(nodes, 1)
    on_ready = partial(_on_ready, settings=settings, nodes=nodes, demo_rate=demo_rate if demo else None)

    async def together(stop: asyncio.Event) -> None:
        from services import launcher

        await launcher.run_all_in_one(settings, stop, on_ready)

    supervised = _supervised(settings, child_environ(os.environ, flags, config), on_ready, nodes=nodes, restart=restart)
    raise typer.Exit(run_server(supervised if nodes else together, log_level=settings.log_level))


def _supervised(
    settings: Settings, environ: Mapping[str, str], on_ready: OnReady, *, nodes: int, restart: bool = True
) -> Main:
    """The gateways that the settings ask for, and so many nodes, each a process of its own."""

    async def run(stop: asyncio.Event) -> None:
        require_gateway(settings)
        with gateway_doors(settings.gateway) as doors:
            await Supervisor(settings, environ, doors=doors, nodes=nodes, restart=restart).run(stop, on_ready)

    return run


def gateway(
    *,
    workers: WorkersOption = None,
    host: HostOption = None,
    port: PortOption = None,
    data: DataOption = None,
    insecure: InsecureOption = False,
    config: ConfigOption = None,
    log_level: LevelOption = None,
    supervised: SupervisedOption = None,
    listen_fd: ListenFdOption = None,
    own_fd: OwnFdOption = None,
    siblings: SiblingsOption = "",
) -> None:
    """Start a gateway alone; it finds its nodes in the registry of the data folder."""
    flags = _flags("gateway", host, port, data, insecure=insecure, log_level=log_level)
    flags["gateway.workers"] = workers
    settings = load_settings(config, os.environ, flags)
    if settings.gateway.workers != 1 and not supervised:
        environ = child_environ(os.environ, flags, config)
        on_all_ready = partial(_on_ready, settings=settings, nodes=0, demo_rate=None)
        together = _supervised(settings, environ, on_all_ready, nodes=0)
        raise typer.Exit(run_server(together, log_level=settings.log_level))
    others = siblings.split(",") if siblings else ()
    inherited = None if listen_fd is None else Inherited(supervised or "", listen_fd, own_fd, others)

    async def run(stop: asyncio.Event) -> None:
        from services import launcher

        on_ready = _tell_supervisor if supervised else partial(_on_ready, settings=settings, nodes=0, demo_rate=None)
        await launcher.run_gateway(settings, stop, on_ready, inherited=inherited)

    raise typer.Exit(run_server(run, log_level=settings.log_level, supervised=supervised))


def node(
    *,
    id: Annotated[  # noqa: A002 -- the flag's name
        str | None, typer.Option("--id", help="Name in the registry. [default: host and port]", show_default=False)
    ] = None,
    host: HostOption = None,
    port: NodePortOption = None,
    data: DataOption = None,
    insecure: InsecureOption = False,
    config: ConfigOption = None,
    log_level: LevelOption = None,
    supervised: SupervisedOption = None,
) -> None:
    """Start a CDRS node alone; gateways find it in the registry of the data folder."""
    flags = {"node.id": id, **_flags("node", host, port, data, insecure=insecure, log_level=log_level)}
    settings = load_settings(config, os.environ, flags)

    async def run(stop: asyncio.Event) -> None:
        from services import launcher

        await launcher.run_node(settings, stop, _tell_supervisor if supervised else _nothing)

    raise typer.Exit(run_server(run, log_level=settings.log_level, supervised=supervised))


def _flags(
    role: str, host: str | None, port: int | None, data: Path | None, *, insecure: bool, log_level: str | None
) -> dict[str, Any]:
    """Setting → what a flag says, None where it was not given."""
    return {
        f"{role}.host": host,
        f"{role}.port": port,
        "data": data,
        "insecure": insecure or None,
        "log_level": log_level,
    }


def child_environ(environ: Mapping[str, str], flags: Mapping[str, Any], config: Path | None) -> dict[str, str]:
    """The environment that gives a child process the same settings: flags become variables."""
    child = dict(environ)
    for path, value in flags.items():
        if value is not None:
            field = setting_fields()[path]
            child.pop(field.env + "_FILE", None)
            child[field.env] = str(value)
    if config is not None:
        child["CDRS_CONFIG"] = str(config)
    return child


async def _on_ready(url: str, *, settings: Settings, nodes: int, demo_rate: float | None) -> None:
    from services.cli.banner import print_banner

    print_banner(settings, url, nodes=nodes, gateways=gateway_count(settings.gateway))
    if demo_rate is not None:
        from services.cli import demo as demo_player

        await demo_player.play(settings, url, rate=demo_rate)


async def _tell_supervisor(url: str) -> None:
    announce_ready(url)


async def _nothing(_url: str) -> None:
    return
