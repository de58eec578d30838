"""The `cdrs` command: data on stdout, talk on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from shared.errors import CdrsError
from shared.version import VERSION

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

COMMANDS = {
    "up": "services.cli.up",
    "gateway": "services.cli.up",
    "node": "services.cli.up",
    "pub": "services.cli.pub",
    "sub": "services.cli.sub",
    "nodes": "services.cli.nodes",
    "streams": "services.cli.streams",
    "store": "services.cli.store",
    "log": "services.cli.log",
    "config": "services.cli.config",
}
"""Command → the module that has it, under the same name; a module's ``app`` is a group of commands."""


def build_app(only: str | None = None) -> typer.Typer:
    """The whole command line, or just one command of it: what a command does not need takes no time to import."""
    app = typer.Typer(
        name="cdrs",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name, module in COMMANDS.items():
        if only not in {None, name}:
            continue
        loaded = import_module(module)
        if hasattr(loaded, "app"):
            app.add_typer(loaded.app, name=name)
        else:
            app.command(name)(getattr(loaded, name))
    return app


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cdrs {VERSION}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Event streaming: events in over HTTP, out to browsers over server-sent events."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0, 1 could not start or something failed, 2 wrong usage, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    only = given[0] if given and given[0] in {*COMMANDS, "--version"} else None
    try:
        build_app(only)(given, prog_name="cdrs")
    except CdrsError as error:
        typer.echo(f"cdrs: {error}", err=True)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away (`cdrs sub … | head`); nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
