"""Results: a table for the terminal, and a row per run in docs/performance.md."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "performance.md"
KEPT = ROOT / "docs" / "bench"
"""Figures of each benchmark as JSON, newest last, and a picture of the newest. A run also has the ``columns`` and
``rows`` that were printed, and may say which servers were ``saturated``; older ones have figures only."""
_INNERMOST = re.compile(r"\[\n[^\[\]{}]*\]")


@dataclass
class Result:
    """What one benchmark found."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    figure: str
    """The figure in words, for the document."""
    baseline: str
    """What it is compared with, from the same run."""
    target: str
    notes: list[str] = field(default_factory=list)
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    """Server → what was measured of it, for `compare` and the plots; less is better. A name that ends in "ratio" or has
    a " / " is a quotient within the run; all others are compared in units of another server of the run."""
    saturated: Sequence[str] | None = None
    """Servers that were given more than they could take, where the benchmark can tell."""


def commit() -> str:
    """Short hash, with a plus where the tree differs from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "uncommitted"


def show(name: str, what: str, result: Result) -> None:
    table = [list(result.columns), *map(list, result.rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(result.columns))]
    print(f"\n{name}: {what}")
    for number, row in enumerate(table):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))
    print(f"  figure:   {result.figure}\n  baseline: {result.baseline}\n  target:   {result.target}")
    for note in result.notes:
        print(f"  note:     {note}")


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def last(name: str) -> dict[str, Any] | None:
    """What was kept of the benchmark's last run."""
    history = _history(name)
    return history[-1] if history else None


def _history(name: str) -> list[dict[str, Any]]:
    path = KEPT / f"{name}.json"
    known: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return known


def kept(result: Result) -> dict[str, Any]:
    """A run as the JSON file has it: what `compare` compares, and all that was printed."""
    figures = {server: {k: float(f"{v:.4g}") for k, v in of.items()} for server, of in result.figures.items()}
    run = {"figures": {server: of for server, of in figures.items() if of}}
    more = {} if result.saturated is None else {"saturated": list(result.saturated)}
    return run | more | {"columns": list(result.columns), "rows": [list(row) for row in result.rows]}


def keep(name: str, what: str, result: Result) -> None:
    """Add a run to the benchmark's JSON file, and draw it."""
    if not result.figures:
        return
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{name}.json"
    run = {"date": today(), "commit": commit(), **kept(result)}
    path.write_text(written([*_history(name), run]))
    from plots import draw  # noqa: PLC0415 -- takes a second to load

    draw(path.with_suffix(".png"), f"{name}: {what} ({today()}, {commit()})", run["figures"])


def written(history: Sequence[dict[str, Any]]) -> str:
    """As JSON, with each row of a table on a line of its own."""
    text = json.dumps(history, indent=1, ensure_ascii=False)
    return _INNERMOST.sub(lambda row: re.sub(r"\n *", " ", row[0]).replace("[ ", "[").replace(" ]", "]"), text) + "\n"


def append(name: str, what: str, result: Result) -> None:
    """Add a row to the benchmark's table, making heading and table where they are not there yet."""
    DOCUMENT.parent.mkdir(exist_ok=True)
    text = DOCUMENT.read_text() if DOCUMENT.exists() else "# Performance\n"
    heading = f"### `scripts/bench {name}`"
    if heading not in text:
        text = text.rstrip("\n") + (
            f"\n\n{heading}\n\n{what[0].upper()}{what[1:]}. Target: {result.target}.\n\n"
            "| date | commit | baseline of the same run | figure |\n|---|---|---|---|\n"
        )
    row = f"| {today()} | {commit()} | {result.baseline} | {result.figure} |"
    lines = text.split("\n")
    at = lines.index(heading) + 1
    while at < len(lines) and not lines[at].startswith("|"):
        at += 1
    while at < len(lines) and lines[at].startswith("|"):
        at += 1
    lines.insert(at, row)
    DOCUMENT.write_text("\n".join(lines))
