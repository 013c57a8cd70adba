"""The Pareto chart: score against the average time of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from elip_plugin.quality.board import Line
from elip_plugin.quality.variants import REFERENCE

KINDS = (("random", "#888888"), ("evit", "#ee6677"), ("tome", "#aa3377"), ("coarse", "#b8a000"))
OWN = "#4477aa"
SEEDS = 3
"""From how many seeds on a variant has its name and interval in the chart, if any has as many."""


def front(timed: Sequence[tuple[float, Line]]) -> list[tuple[float, Line]]:
    """Find the lines that no cheaper one equals in score.

    Args:
        timed: Lines with the time of their step.

    Returns:
        Those on the Pareto front, from cheap to dear.
    """
    best, found = float("-inf"), []
    for step, line in sorted(timed, key=lambda pair: (pair[0], -pair[1].mrr_gap.mean)):
        if line.mrr_gap.mean > best:
            best = line.mrr_gap.mean
            found.append((step, line))
    return found


def draw(lines: Sequence[Line], path: Path) -> None:
    """Draw the chart; variants that were not timed are left out.

    Args:
        lines: The lines of a board.
        path: An .svg or .png file.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "elip"  # the same bytes for the same lines
    from matplotlib import pyplot

    timed = [(line.step, line) for line in lines if line.step is not None]
    enough = min(SEEDS, max((line.mrr_gap.seeds for _, line in timed), default=0))
    named = [(step, line) for step, line in timed if line.mrr_gap.seeds >= enough]
    figure, axes = pyplot.subplots(figsize=(9, 6))
    axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    for step, line in timed:
        y, colour = 100 * line.mrr_gap.mean, _colour(line)
        if (step, line) not in named:
            axes.plot(step, y, "o", markersize=4, markeredgecolor=colour, markerfacecolor="none")
            continue
        axes.errorbar(step, y, yerr=100 * line.mrr_gap.half, fmt="o", color=colour, elinewidth=0.8)
        text = f"{line.variant} ({line.mrr_gap.seeds})"
        axes.annotate(text, (step, y), (5, 4), textcoords="offset points", fontsize=8, rotation=25)
    edge = front(named)
    ys = [100 * line.mrr_gap.mean for _, line in edge]
    axes.plot([step for step, _ in edge], ys, "k--", linewidth=0.6)
    means = [100 * line.mrr_gap.mean for _, line in timed]
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


def _colour(line: Line) -> str:
    if line.variant == REFERENCE:
        return "black"
    return next((colour for kind, colour in KINDS if line.variant.startswith(kind)), OWN)
