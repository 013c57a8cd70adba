"""A benchmark's results: a table, JSON, CSV and a chart."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from elip_plugin.measure.speed import Row, Setting, as_mapping, reference_of

UNPRUNED = ("full", "fused")


def print_table(made: Setting, rows: Sequence[Row]) -> None:
    """Print a run.

    Args:
        made: Where and how it was made.
        rows: What was measured.
    """
    memory = "peak memory" if made.on_gpu else "kept for backward"
    table = Table(title=describe(made), title_justify="left")
    for name in ("pass", "variant", "time", "of the first (lowest-highest)", "operations", memory):
        table.add_column(name, justify="left" if name in ("pass", "variant") else "right")
    last = ""
    for row in rows:
        base = reference_of(row, rows)
        table.add_row(
            row.measured if row.measured != last else "",
            row.variant,
            _seconds(row.seconds),
            f"{row.ratio:.3f} ({row.low:.2f}-{row.high:.2f})",
            f"{row.flops / base.flops:.3f}" if base.flops else "-",
            f"{row.memory / base.memory:.3f}" if base.memory else "-",
        )
        last = row.measured
    console = Console()
    console.print(table)
    for row in rows:
        base = reference_of(row, rows)
        if row.ratio > 1 and base.variant in UNPRUNED and row.variant not in UNPRUNED:
            console.print(
                f"{row.measured}: {row.variant} takes {row.ratio:.2f} of {base.variant} here, so "
                "choosing costs more than it saves."
            )


def describe(made: Setting) -> str:
    """Say in one line where and how a run was made.

    Args:
        made: The setting.

    Returns:
        The line.
    """
    threads = "" if made.on_gpu else f", {made.threads} threads"
    compiled = ", compiled" if made.compiled else ""
    return (
        f"{made.model}, batch {made.batch}, {made.image_size} px, {made.precision}{compiled}; "
        f"{made.device}{threads}, torch {made.torch}; medians of {made.rounds} rounds in turn"
    )


def write_files(folder: Path, made: Setting, rows: Sequence[Row]) -> None:
    """Write a run as speed.json, speed.csv and speed.svg.

    Args:
        folder: Where to; made if it is not there.
        made: Where and how the run was made.
        rows: What was measured.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speed.json").write_text(json.dumps(as_mapping(made, rows), indent=1) + "\n")
    with (folder / "speed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    (folder / "speed.svg").write_text(_chart(made, rows))


def _chart(made: Setting, rows: Sequence[Row]) -> str:
    """Bars of the ratios with their spread, by pass."""
    height, left, scale = 22, 190, 360
    top = max(row.high for row in rows)
    lines = []
    for i, row in enumerate(rows):
        y = 40 + i * height
        wide, low, high = (scale * value / top for value in (row.ratio, row.low, row.high))
        lines += [
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{row.measured} '
            f"{row.variant}</text>",
            f'<rect x="{left}" y="{y + 3}" width="{wide:.1f}" height="14" fill="#4477aa"/>',
            f'<path d="M{left + low:.1f} {y + 10}H{left + high:.1f}" stroke="#888"/>',
            f'<text x="{left + max(wide, high) + 6:.1f}" y="{y + 14}">{row.ratio:.2f}</text>',
        ]
    title = describe(made)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + scale + 60}" '
        f'height="{50 + len(rows) * height}" font-family="sans-serif" font-size="12" fill="#555">\n'
        f"<title>{title}</title>\n"
        f'<text x="8" y="20">Time over the first variant\'s, with the spread of its rounds</text>\n'
        + "\n".join(lines)
        + "\n</svg>\n"
    )


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"
