"""`cdrs config show|check|docs`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from services.cli.client import JsonOption
from services.cli.options import ConfigOption
from services.cli.output import data, run, talk, write_json
from services.listening import require_gateway, require_loopback, require_url
from shared.backplane import check_urls
from shared.settings import LoadedSettings, SettingField, Settings, resolve_settings, setting_fields, without_password

app = typer.Typer(no_args_is_help=True, help="Look at the settings.")


def _load(config: Path | None) -> LoadedSettings:
    return resolve_settings(config, os.environ, {})


@app.command("show")
def show(*, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Every setting, its value, and where the value is from."""
    loaded = _load(config)
    if json:
        rows = {
            path: {"value": _plain(loaded.value(path)), "origin": loaded.origins[path], "unit": field.unit}
            for path, field in setting_fields().items()
        }
        write_json(rows)
        return
    table = Table(box=None, pad_edge=False, show_edge=False)
    for title in ("setting", "value", "unit", "from"):
        table.add_column(title, overflow="fold")
    for path, field in setting_fields().items():
        table.add_row(path, shown(loaded.value(path)), field.unit, loaded.origins[path])
    data.print(table)


@app.command("check")
def check(*, config: ConfigOption = None) -> None:
    """Whether a server would start with these settings; exit code 1 and the reason if not."""
    settings = _load(config).settings
    require_gateway(settings)
    require_loopback(settings.node.host, insecure=settings.insecure, setting="node.host")
    require_url(settings.node.url, setting="node.url")
    run(_check_servers(settings))


async def _check_servers(settings: Settings) -> int:
    await check_urls(settings)
    talk.print("the settings are fine")
    return 0


@app.command("docs")
def docs() -> None:
    """The reference of all settings, as Markdown."""
    data.file.write(settings_markdown())


def settings_markdown() -> str:
    """The text of ``docs/settings.md``."""
    lines = [
        "# Settings",
        "",
        "Made by `cdrs config docs`; do not edit.",
        "",
        "Sources, weakest first: a TOML file (`--config` or `CDRS_CONFIG`), environment variables, flags. In the file,",
        "dots are tables: `gateway.port` is `port` in `[gateway]`. A variable with `_FILE` behind its name, such as",
        "`CDRS_NODE__ID_FILE`, names a file that holds the value. Lists are JSON or separated by commas. Unknown names",
        "are errors. `cdrs config show` prints every value and where it is from.",
        "",
        "Clients read `CDRS_URL` (where the gateway is); `CDRS_CONFIG` names the settings file.",
        "",
        "| setting | variable | unit | default | allowed | reason |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(field) for field in setting_fields().values()]
    return "\n".join(lines) + "\n"


def _row(field: SettingField) -> str:
    cells = (f"`{field.path}`", f"`{field.env}`", field.unit, _default(field), field.allowed, field.reason)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: SettingField) -> str:
    text = shown(field.default)
    return f"`{text}`" if text else "(empty)"


def shown(value: Any) -> str:
    """A value as people see it: without the password of a URL."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return f"{value:g}" if isinstance(value, float) else without_password(str(value))


def _plain(value: Any) -> Any:
    return shown(value) if isinstance(value, (Path, str)) else value
