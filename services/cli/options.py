"""Flags that several server commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", envvar="CDRS_CONFIG", help="Settings file (TOML).", metavar="FILE", show_default=False),
]
HostOption = Annotated[
    str | None, typer.Option("--host", help="Address to listen on. [default: 127.0.0.1]", show_default=False)
]
PortOption = Annotated[
    int | None, typer.Option("--port", "-p", help="Port; 0 takes a free one. [default: 8080]", show_default=False)
]
NodePortOption = Annotated[
    int | None, typer.Option("--port", "-p", help="Port; 0 takes a free one. [default: 0]", show_default=False)
]
DataOption = Annotated[
    Path | None, typer.Option("--data", "-d", help="Data folder. [default: .cdrs]", metavar="DIR", show_default=False)
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Allow a bind beyond this machine, without any access control.")
]
LevelOption = Annotated[
    str | None, typer.Option("--log-level", help="debug, info, warning or error. [default: info]", show_default=False)
]
SupervisedOption = Annotated[str | None, typer.Option("--supervised", hidden=True, metavar="NAME")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-w",
        min=0,
        max=256,
        help="Gateway processes on one port; 0: one for each CPU. [default: 1]",
        show_default=False,
    ),
]
OwnFdOption = Annotated[int | None, typer.Option("--own-fd", hidden=True, min=3, metavar="N")]
SiblingsOption = Annotated[str, typer.Option("--siblings", hidden=True, metavar="URL,URL")]
ListenFdOption = Annotated[int | None, typer.Option("--listen-fd", hidden=True, min=3, metavar="N")]
