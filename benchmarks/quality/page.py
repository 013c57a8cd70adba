"""Writes the tables and charts of research/quality.md anew from the committed results log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks import results_log
from benchmarks.board import chart, report
from benchmarks.board.cost import read_ratios
from benchmarks.board.variants import REFERENCE
from benchmarks.quality.questions import MRR, QUESTIONS
from benchmarks.quality.recipe import RECIPES, Recipe
from benchmarks.tables import fill, markdown

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "research" / "quality.md"
RESULTS = ROOT / "docs" / "results"
LOG = "board.jsonl"
TIMES = "steps.json"
HEADER = (
    *report.COLUMNS, "MRR %", "less unpruned", "loss",
    "half at test: ToMe", "attention", "random", "quarter: attention", "random",
)  # fmt: skip


def read(folder: Path, recipes: Mapping[str, Recipe] | None = None) -> dict[str, report.Results]:
    """Read the results of a folder.

    Args:
        folder: Where the log lies.
        recipes: How the models were trained, by regime; None for `RECIPES`.

    Returns:
        Results by regime.
    """
    rows = results_log.read(folder / LOG)
    used = RECIPES if recipes is None else recipes
    return {regime: report.select(rows, recipe) for regime, recipe in used.items()}


def tables(folder: Path) -> dict[str, str]:
    """Write all tables of a folder's results.

    Args:
        folder: Where log and times lie.

    Returns:
        Tables in Markdown: "answers", and one per regime that has results.
    """
    found = read(folder)
    ratios = read_ratios(folder / TIMES)
    made = {"answers": report.answers(found, QUESTIONS, MRR)}
    for regime, results in found.items():
        if (REFERENCE, "steps") in results:
            rows = (report.cells(row) for row in report.board(results, ratios, MRR))
            deviation = 100 * report.seed_deviation(results, MRR)
            made[regime] = (
                markdown(HEADER, rows)
                + f"\nStandard deviation of unpruned training's MRR from seed to seed: "
                f"{deviation:.2f} points.\n"
            )
    return made


def write() -> None:
    """Write the tables of the page, and the charts."""
    PAGE.write_text(fill(PAGE.read_text(), tables(RESULTS)))
    ratios = read_ratios(RESULTS / TIMES)
    for regime, results in read(RESULTS).items():
        if (REFERENCE, "steps") in results:
            rows = report.board(results, ratios, MRR)
            chart.draw_front(rows, MRR, RESULTS / f"{regime}.svg")
            chart.draw_curves(results, MRR, RESULTS / f"{regime}-curves.svg")
