"""A benchmark's results: a table, JSON, CSV and a chart."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from rich.table import Table

from elip_plugin.files import write_text
from elip_plugin.measure.parts import Parts
from elip_plugin.measure.runtimes import RuntimeRow
from elip_plugin.measure.speed import Row, Setting, processor
from elip_plugin.measure.variants import pruned_variants


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


def runtimes_table(model: str, threads: int, rows: Sequence[RuntimeRow]) -> Table:
    """Make the table of a run in several runtimes."""
    title = f"image tower of {model}, {processor()}, {threads} threads"
    table = Table(title=title, title_justify="left")
    for name in ("runtime", "batch", "variant"):
        table.add_column(name)
    for name in ("a batch", "images per second", "of the first (lowest-highest)", "counted"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.runtime,
            str(row.batch),
            row.variant,
            f"{1000 * row.seconds:.1f} ms",
            f"{row.batch / row.seconds:.1f}",
            f"{row.ratio:.3f} ({row.low:.2f}-{row.high:.2f})",
            f"{row.counted:.3f}",
        )
    return table


def slower_than_unpruned(rows: Sequence[Row]) -> list[str]:
    """Say which pruned variants take longer than an unpruned first one."""
    first, pruned = rows[0].variant, pruned_variants()
    return [
        f"{row.measured}: {row.variant} takes {row.ratio:.2f} of {first} here, so choosing costs "
        "more than it saves."
        for row in rows
        if row.ratio > 1 and row.variant in pruned and first not in pruned
    ]


def write_files(
    folder: Path, made: Setting, rows: Sequence[Row], parts: Parts | None = None
) -> None:
    """Write a run as speed.json, speed.csv and speed.svg."""
    plain = [asdict(row) for row in rows]
    about = {} if parts is None else {"parts": asdict(parts)}
    text = json.dumps({"setting": asdict(made), "rows": plain, **about}, indent=1)
    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in fields(Row)])
    writer.writeheader()
    writer.writerows(plain)
    write_text(folder / "speed.json", text + "\n")
    write_text(folder / "speed.csv", table.getvalue())
    write_text(folder / "speed.svg", _chart(made, rows))


def _chart(made: Setting, rows: Sequence[Row]) -> str:
    """Draw bars of the ratios with their spread, by pass."""
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
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + scale + 60}" '
        f'height="{50 + len(rows) * height}" font-family="sans-serif" font-size="12" fill="#555">\n'
        f"<title>{_describe(made)}</title>\n"
        f'<text x="8" y="20">Time over the first variant\'s, with the spread of its rounds</text>\n'
        + "\n".join(lines)
        + "\n</svg>\n"
    )


def _describe(made: Setting) -> str:
    """Describe in one line where and how a run was made."""
    threads = "" if made.on_gpu else f", {made.threads} threads"
    compiled = ", compiled" if made.compiled else ""
    compiled += "" if made.attention == "fused" else ", plain attention"
    return (
        f"{made.model}, batch {made.batch}, {made.image_size} px, {made.precision}{compiled}; "
        f"{made.device}{threads}, torch {made.torch}; medians of {made.rounds} rounds in turn"
    )
