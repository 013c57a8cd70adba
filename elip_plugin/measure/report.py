"""What `elip bench speed` found: a table, sentences and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from elip_plugin.config import ElipConfig
from elip_plugin.files import write_text
from elip_plugin.measure.speed import Row, Setting
from elip_plugin.measure.variants import pruned_variants

FEWEST = 5
"""Rounds by which a difference is shown: by chance one in 32 goes the same way in all."""


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


def notes_on(rows: Sequence[Row], own: ElipConfig | None, rounds: int) -> list[str]:
    """Say which pruned variants are slower in every round, and what `inference` is of `own`.

    `own` is the model's plan, None if it was not measured.
    """
    first, plans = rows[0].variant, pruned_variants(own)
    lines = [
        f"{row.measured}: {row.variant} takes {row.ratio:.2f} of {first} here, and more in every "
        f"round ({row.low:.2f} to {row.high:.2f})."
        for row in rows
        if rounds >= FEWEST and row.low > 1 and row.variant in plans and first not in plans
    ]
    if own is not None and own.eval_mode == "full" and any(r.measured == "inference" for r in rows):
        lines.append(
            "inference: pruned by the image, as with eval_mode 'image'; by its plan this model "
            "keeps all tokens in evaluation."
        )
    return lines


def describe_share(rows: Sequence[Row]) -> list[str]:
    """Say how much of the first variant's step the tower takes, if both were timed."""
    first = rows[0].variant
    seconds = {row.measured: row.seconds for row in rows if row.variant == first}
    if not {"tower", "step"} <= {*seconds}:
        return []
    return [
        f"The vision tower takes {seconds['tower'] / seconds['step']:.0%} of a step of {first}, "
        f"{seconds['step']:.2f} s; pruning can shorten that part only."
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
