"""Two charts: score against counted operations, and score along the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.board.measure import Measure
from benchmarks.board.report import BoardRow, Results
from benchmarks.board.variants import REFERENCE


def front(rows: Sequence[BoardRow]) -> list[BoardRow]:
    """Find the rows that no cheaper one equals in score.

    Args:
        rows: Rows of one budget.

    Returns:
        Those on the Pareto front, from cheap to costly.
    """
    best, found = float("-inf"), []
    for row in sorted(rows, key=lambda row: (row.step, -row.gap.mean)):
        if row.gap.mean > best:
            best = row.gap.mean
            found.append(row)
    return found


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "elip"  # the same bytes for the same rows
    from matplotlib import pyplot

    return pyplot


def _save(pyplot: Any, figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


LOWEST = -0.05
"""A row that loses more would flatten the others into one line."""


def draw_front(rows: Sequence[BoardRow], measure: Measure, path: Path) -> None:
    """Draw each row's score against the operations of its step; one panel per budget.

    Args:
        rows: The rows of a board.
        measure: Their score.
        path: An .svg or .png file.
    """
    pyplot = _pyplot()
    shown = [row for row in rows if row.gap.mean > LOWEST]
    figure, panels = pyplot.subplots(1, 2, figsize=(13, 5.5), sharey=True)
    for axes, budget in zip(panels, ("steps", "operations")):
        own = [row for row in shown if row.budget == budget or row.variant == REFERENCE]
        axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
        for row in own:
            y, half = 100 * row.gap.mean, 100 * row.gap.half
            colour = "black" if row.variant == REFERENCE else "#4477aa"
            bar = None if row.gap.seeds < 2 or row.variant == REFERENCE else half
            axes.errorbar(row.step, y, yerr=bar, fmt="o", color=colour, elinewidth=0.8)
            text = f"{row.variant} ({row.gap.seeds})"
            axes.annotate(
                text, (row.step, y), (5, 4), textcoords="offset points", fontsize=8, rotation=25
            )
        edge = front(own)
        ys = [100 * row.gap.mean for row in edge]
        axes.plot([row.step for row in edge], ys, "k--", linewidth=0.6)
        axes.set_xlabel("counted operations of a training step, of unpruned")
        axes.set_title(f"equal {budget}", fontsize=10)
    panels[0].set_ylabel(f"{measure.name} less unpruned training's, points")
    title = "Seeds in brackets, bars: 95% intervals, dashed: Pareto front"
    if len(shown) < len(rows):
        title += f"; left out: {len(rows) - len(shown)} below {100 * LOWEST:.0f} points"
    figure.suptitle(title, fontsize=9)
    _save(pyplot, figure, path)


def draw_curves(results: Results, measure: Measure, path: Path) -> None:
    """Draw the score along the training, against counted operations; means over seeds.

    Args:
        results: From `benchmarks.board.report.select`.
        measure: The score.
        path: An .svg or .png file.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 5.5))
    for (name, budget), seeds in results.items():
        if name != REFERENCE and budget != "operations":
            continue
        rows = list(seeds.values())
        points = range(len(rows[0]["curve"]))
        xs = [
            row["operations"] * row["curve"][i]["step"] / row["steps"]
            for row in rows[:1]
            for i in points
        ]
        ys = [100 * mean(row["curve"][i][measure.key] for row in rows) for i in points]
        style = {"color": "black", "linewidth": 2} if name == REFERENCE else {"linewidth": 1}
        axes.plot(xs, ys, "o-", markersize=3, label=f"{name} ({len(rows)})", **style)
    axes.set_xlabel("counted operations, of a whole unpruned training")
    axes.set_ylabel(f"{measure.name} with all tokens, %")
    axes.legend(fontsize=8)
    _save(pyplot, figure, path)


def draw_gain(panels: Mapping[str, tuple[Measure, Sequence[BoardRow]]], path: Path) -> None:
    """Draw the gain of a few plans over unpruned training against the operations of the training.

    Args:
        panels: The score, and rows whose `variant` is what is written at them, by title.
        path: An .svg or .png file.
    """
    pyplot = _pyplot()
    figure, drawn = pyplot.subplots(1, len(panels), figsize=(10, 4.2), squeeze=False)
    shown = [row for _, rows in panels.values() for row in rows]
    names = list(dict.fromkeys(row.variant for row in shown))
    for axes, (title, (measure, rows)) in zip(drawn[0], panels.items()):
        axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
        axes.axvline(1, color="#cccccc", linewidth=0.8, zorder=0)
        axes.plot(1, 0, "s", color="black", label=REFERENCE)
        for place, name in enumerate(names):
            own = [row for row in rows if row.variant == name]
            if not own:
                continue
            # Several plans end at the operations of unpruned training: side by side there.
            xs = [row.step if row.budget == "steps" else 1 + 0.012 * (place - 1) for row in own]
            ys = [100 * row.gap.mean for row in own]
            bars = [100 * row.gap.half for row in own]
            seeds = "-".join(map(str, sorted({row.gap.seeds for row in own})))
            axes.errorbar(
                xs, ys, yerr=bars, fmt="o-", color=f"C{place}", linewidth=1, elinewidth=0.8,
                label=f"{name} ({seeds} seeds)",
            )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("counted operations of the whole training, over unpruned")
        axes.set_ylabel(f"{measure.name} over unpruned training, points")
        axes.set_xlim(min(row.step for row in shown) - 0.05, 1.1)
        axes.legend(fontsize=8, loc="upper left")
    _save(pyplot, figure, path)
