"""What `elip bench speed` found: a table, a note and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from elip_plugin.config import ElipConfig
from elip_plugin.files import write_text
from elip_plugin.measure.speed import Row, Setting


def speed_table(setting: Setting, rows: Sequence[Row]) -> Table:
    """Make the table of a run."""
    memory = "peak memory" if setting.on_gpu else "kept for backward"
    table = Table(title=_describe(setting), title_justify="left")
    ratio = f"ratio to {rows[0].variant} (lowest-highest)"
    for name in ("pass", "variant", "time", ratio, "operations", memory):
        table.add_column(name, justify="left" if name in ("pass", "variant") else "right")
    first: dict[str, Row] = {}
    for row in rows:
        base = first.setdefault(row.measured, row)
        table.add_row(
            row.measured if row is base else "",
            row.variant,
            f"{row.seconds:.2f} s" if row.seconds >= 1 else f"{1000 * row.seconds:.1f} ms",
            f"{row.ratio:.3f} ({row.low:.2f}-{row.high:.2f})",
            f"{row.flops / base.flops:.3f}" if base.flops else "-",
            f"{row.memory / base.memory:.3f}" if base.memory else "-",
        )
    return table


def notes_on(rows: Sequence[Row], own: ElipConfig | None) -> list[str]:
    """Say what `inference` is of the model's plan, which is None if it was not measured."""
    if own is None or own.eval_mode != "full" or all(r.measured != "inference" for r in rows):
        return []
    return [
        "inference: pruned by the image, as with eval_mode 'image'; by its plan this model "
        "keeps all tokens in evaluation."
    ]


def write_files(folder: Path, setting: Setting, rows: Sequence[Row]) -> None:
    """Write a run as speed.json."""
    values = {"setting": asdict(setting), "rows": [asdict(row) for row in rows]}
    write_text(folder / "speed.json", json.dumps(values, indent=1) + "\n")


def _describe(run: Setting) -> str:
    """Describe in one line where and how a run was made."""
    threads = "" if run.on_gpu else f", {run.threads} threads"
    compiled = ", compiled" if run.compiled else ""
    return (
        f"{run.label}; batch {run.batch}, {run.image_size} px, {run.precision}{compiled}; "
        f"{run.device}{threads}, torch {run.torch}; medians; rounds in turn: {run.rounds}"
    )
