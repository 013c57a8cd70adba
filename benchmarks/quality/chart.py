"""The Pareto chart: score against the average time of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.report import ReportRow
from benchmarks.quality.variants import REFERENCE

KINDS = (("random", "#888888"), ("evit", "#ee6677"), ("tome", "#aa3377"), ("coarse", "#b8a000"))
OWN = "#4477aa"
SEEDS = 3
"""From how many seeds on a variant has its name and interval in the chart, if any has as many."""


def front(timed: Sequence[tuple[float, ReportRow]]) -> list[tuple[float, ReportRow]]:
    """Find the rows that no cheaper one equals in score.

    Args:
        timed: Rows with the time of their step.

    Returns:
        Those on the Pareto front, from cheap to costly.
    """
    best, found = float("-inf"), []
    for step, row in sorted(timed, key=lambda pair: (pair[0], -pair[1].mrr_gap.mean)):
        if row.mrr_gap.mean > best:
            best = row.mrr_gap.mean
            found.append((step, row))
    return found


def draw(rows: Sequence[ReportRow], path: Path) -> None:
    """Draw the chart; variants that were not timed are left out.

    Args:
        rows: The rows of a report.
        path: An .svg or .png file.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "elip"  # the same bytes for the same rows
    from matplotlib import pyplot

    timed = [(row.step, row) for row in rows if row.step is not None]
    enough = min(SEEDS, max((row.mrr_gap.seeds for _, row in timed), default=0))
    named = [(step, row) for step, row in timed if row.mrr_gap.seeds >= enough]
    figure, axes = pyplot.subplots(figsize=(9, 6))
    axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    for step, row in timed:
        y, colour = 100 * row.mrr_gap.mean, _colour(row)
        if (step, row) not in named:
            axes.plot(step, y, "o", markersize=4, markeredgecolor=colour, markerfacecolor="none")
            continue
        axes.errorbar(step, y, yerr=100 * row.mrr_gap.half, fmt="o", color=colour, elinewidth=0.8)
        text = f"{row.variant} ({row.mrr_gap.seeds})"
        axes.annotate(text, (step, y), (5, 4), textcoords="offset points", fontsize=8, rotation=25)
    edge = front(named)
    ys = [100 * row.mrr_gap.mean for _, row in edge]
    axes.plot([step for step, _ in edge], ys, "k--", linewidth=0.6)
    means = [100 * row.mrr_gap.mean for _, row in timed]
    axes.set_ylim(min(means) - 4, max(means) + 8)  # an interval of two seeds can span all
    axes.set_xlabel("average training step over the run, of unpruned (measured)")
    axes.set_ylabel("mean reciprocal rank less unpruned training's, points")
    axes.set_title(
        f"With name (seeds) and 95% interval: {enough} seeds or more. Hollow: fewer. Dashed: front",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _colour(row: ReportRow) -> str:
    if row.variant == REFERENCE:
        return "black"
    return next((colour for kind, colour in KINDS if row.variant.startswith(kind)), OWN)
