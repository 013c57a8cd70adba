"""A benchmark's results: a table, sentences and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from elip_plugin.config import ElipConfig
from elip_plugin.files import write_text
from elip_plugin.measure.parts import Parts
from elip_plugin.measure.speed import Row, Setting
from elip_plugin.measure.variants import pruned_variants

FEWEST = 5
"""Rounds by which a difference is shown: by chance one in 32 goes the same way in all."""


def speed_table(made: Setting, rows: Sequence[Row]) -> Table:
    """Make the table of a run."""
    memory = "peak memory" if made.on_gpu else "kept for backward"
    table = Table(title=_describe(made), title_justify="left")
    for name in ("pass", "variant", "time", "of the first (lowest-highest)", "operations", memory):
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
    """Say which pruned variants are slower, and what the pass `inference` is of a model's plan.

    Args:
        rows: What was measured.
        own: The model's plan, if it was.
        rounds: Rounds that count.

    Returns:
        Sentences; none about a difference that some round does not show.
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


def write_files(
    folder: Path, made: Setting, rows: Sequence[Row], parts: Parts | None = None
) -> None:
    """Write a run as speed.json."""
    about = {} if parts is None else {"parts": asdict(parts)}
    values = {"setting": asdict(made), "rows": [asdict(row) for row in rows], **about}
    write_text(folder / "speed.json", json.dumps(values, indent=1) + "\n")


def _describe(made: Setting) -> str:
    """Describe in one line where and how a run was made."""
    threads = "" if made.on_gpu else f", {made.threads} threads"
    compiled = ", compiled" if made.compiled else ""
    compiled += "" if made.attention == "fused" else ", plain attention"
    return (
        f"{made.label}; batch {made.batch}, {made.image_size} px, {made.precision}{compiled}; "
        f"{made.device}{threads}, torch {made.torch}; medians of {made.rounds} rounds in turn"
    )
