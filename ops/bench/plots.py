"""What the benches found, as pictures: one for each, a field for each figure, a bar for each server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

COLUMNS = 3
COLOURS = {"cdrs": "#2a6f97", "F": "#8d99ae"}
OTHER = "#c9ada7"


def draw(path: Path, title: str, figures: Mapping[str, Mapping[str, float]]) -> None:
    """``figures``: server → figure → value."""
    names = list(dict.fromkeys(name for of in figures.values() for name in of))
    rows = -(-len(names) // COLUMNS)
    columns = min(COLUMNS, len(names))
    canvas, fields = plt.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows + 0.6), squeeze=False)
    for number, name in enumerate(names):
        field = fields[number // COLUMNS][number % COLUMNS]
        servers = [server for server in figures if name in figures[server]]
        values = [figures[server][name] for server in servers]
        bars = field.bar(servers, values, color=[COLOURS.get(server, OTHER) for server in servers])
        field.bar_label(bars, fmt="%.3g")
        field.set_title(name)
        field.margins(y=0.15)
        field.spines[["top", "right"]].set_visible(False)
    for field in fields.flat[len(names) :]:
        field.set_visible(False)
    canvas.suptitle(title)
    canvas.tight_layout()
    canvas.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(canvas)
