"""`cdrs store plan-shards`: what an operator of the store needs to know of it."""

from __future__ import annotations

import logging
import os
from typing import Annotated

import typer

from services.cli.options import ConfigOption
from services.cli.output import data, run, talk
from shared.backplane import shard_commands
from shared.settings import Settings, load_settings

app = typer.Typer(no_args_is_help=True, help="Look after the store.")


@app.callback()
def _group() -> None:
    """Look after the store."""


@app.command("plan-shards")
def plan_shards(
    *,
    shard: Annotated[
        list[str] | None,
        typer.Option("--shard", help="A shard's name; repeat it for each. Without, the balancer deals them out."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Print the commands that spread the store over a sharded MongoDB cluster, for mongosh on a router.

    They change nothing until you run them. What was done already does no harm; print them again for each new epoch.
    """
    run(_plan(load_settings(config, os.environ, {}), shard or []))


async def _plan(settings: Settings, shards: list[str]) -> int:
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the error that ends the command says it better
    lines = await shard_commands(settings, shards)
    talk.print(f"{len(lines)} commands; to run them: cdrs store plan-shards | mongosh mongodb://router/admin")
    for line in lines:
        data.file.write(f"{line}\n")
    return 0
