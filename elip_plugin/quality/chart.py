"""The Pareto chart: score against the average time of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from elip_plugin.quality.board import Line
from elip_plugin.quality.variants import REFERENCE

KINDS = (("random", "#bbbbbb"), ("evit", "#ee6677"), ("tome", "#aa3377"), ("coarse", "#ccbb44"))
OWN = "#4477aa"


def front(timed: Sequence[tuple[float, Line]]) -> list[tuple[float, Line]]:
    """Find the lines that no cheaper one equals in score.

    Args:
        timed: Lines with the time of their step.

    Returns:
        Those on the Pareto front, from cheap to dear.
    """
    best, found = float("-inf"), []
    for step, line in sorted(timed, key=lambda pair: (pair[0], -pair[1].mrr)):
        if line.mrr > best:
            best = line.mrr
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
    figure, axes = pyplot.subplots(figsize=(9, 6))
    for step, line in timed:
        colours = [colour for kind, colour in KINDS if line.variant.startswith(kind)]
        colour = "black" if line.variant == REFERENCE else (colours or [OWN])[0]
        half = 0.0 if line.variant == REFERENCE else 100 * line.mrr_gap.half
        axes.errorbar(
            step, 100 * line.mrr, yerr=half, fmt="o", color=colour, elinewidth=0.7, alpha=0.9
        )
        axes.annotate(
            line.variant, (step, 100 * line.mrr), (5, 3), textcoords="offset points",
            fontsize=7,
        )  # fmt: skip
    edge = front(timed)
    axes.plot([x for x, _ in edge], [100 * line.mrr for _, line in edge], "k--", linewidth=0.6)
    axes.set_xlabel("average training step over the run, of unpruned (measured)")
    axes.set_ylabel("held-out mean reciprocal rank, % (all tokens at test)")
    axes.set_title("Bars: 95% intervals of the difference to full. Dashed: Pareto front")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
