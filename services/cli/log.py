"""`cdrs log check` and `cdrs log recover`: when the log is damaged, or is not the one that was there before."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import typer

from services.cli.options import ConfigOption, DataOption
from services.cli.output import run, talk
from shared.backplane import check_log, recover_log
from shared.clock import SystemClock
from shared.settings import Settings, load_settings

if TYPE_CHECKING:
    from shared.recovered import Recovery

SHOWN = 20
"""Lost ranges that are listed."""

app = typer.Typer(no_args_is_help=True, help="Look after the log.")


@app.callback()
def _group() -> None:
    """Look after the log."""


@app.command()
def check(*, data: DataOption = None, config: ConfigOption = None) -> None:
    """Read the whole log and say what is there. Changes nothing; exit code 1 where something is wrong."""
    run(_check(load_settings(config, os.environ, {"data": data})))


@app.command()
def recover(*, data: DataOption = None, config: ConfigOption = None) -> None:
    """Open a new epoch: when the log is damaged, was made anew, or an older copy was put back. Stop cdrs first.

    What can be read of log.db, or what MongoDB has, stays at the offsets that it had. Cursors of before go on as far as
    nothing is lost; readers are told what is. A damaged log.db is kept under another name.
    """
    run(_recover(load_settings(config, os.environ, {"data": data})))


async def _check(settings: Settings) -> int:
    found = await check_log(settings)
    _describe(found)
    return 0 if found.findings.is_sound and not found.beyond else 1


async def _recover(settings: Settings) -> int:
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the error that ends the command says it better
    done = await recover_log(settings, SystemClock())
    _describe(done)
    if done.kept_as is not None:
        talk.print(f"made a new log.db of what can be read; the damaged one is {done.kept_as}")
    talk.print(f"the log is of epoch {done.epoch} now; start cdrs again")
    return 0


def _describe(found: Recovery) -> None:
    log = found.findings
    epoch = log.epoch or "that cannot be read"
    talk.print(f"{found.name}: epoch {epoch}, {log.partitions} partitions, {log.events} events")
    if log.damage:
        talk.print(f"damaged: {log.damage}")
    _list([f"partition {p}: offsets {start} to {stop} cannot be read" for p, start, stop in log.lost])
    _list([f"partition {p}: it ends at {end}, but {known} offsets were there" for p, end, known in found.beyond])
    if log.is_sound and not found.beyond:
        talk.print("nothing is wrong with it")


def _list(lines: list[str]) -> None:
    for line in lines[:SHOWN]:
        talk.print(line)
    if len(lines) > SHOWN:
        talk.print(f"… and {len(lines) - SHOWN} more")
