"""Writes the tables and charts of research/photos.md, and the first table of quality.md, anew."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import results_log
from benchmarks.board import chart, report
from benchmarks.board.cost import read_ratios
from benchmarks.board.grid import BUDGETS
from benchmarks.board.variants import REFERENCE, VARIANTS
from benchmarks.photos.questions import (
    ALL_QUESTIONS,
    QUESTIONS,
    TOP1,
    UNSEEN,
    UNSEEN_NAMES,
    UNSEEN_QUESTIONS,
)
from benchmarks.photos.recipe import RECIPES
from benchmarks.stats import difference
from benchmarks.tables import fill, markdown, signed

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "research" / "photos.md", ROOT / "research" / "quality.md")
"""The whole report; the page that begins with what it says."""

RESULTS = ROOT / "docs" / "results"
LOG = "photos.jsonl"
TIMES = "photos-steps.json"
BOXES = "photos-boxes.json"
HEADER = (
    *report.COLUMNS, "top-1 %", "less unpruned", "loss", "half at test: ToMe", "attention",
    "random", "quarter: attention", "random", "half the side",
)  # fmt: skip
SHORT_HEADER = ("variant", "what it is", "step: counted", "equal steps", "equal operations")
BOXES_HEADER = (
    "trained", "budget", "seeds", "half: ToMe", "attention", "random", "quarter: attention",
    "random",
)  # fmt: skip
BOXES_PLANS = (
    "half by tome", "half by attention", "half by random", "quarter by attention",
    "quarter by random",
)  # fmt: skip
UNSEEN_HEADER = (
    "variant", "budget", "seeds", "by means of photographs %", "less unpruned",
    "by names %", "less unpruned",
)  # fmt: skip


def read(folder: Path) -> dict[str, report.Results]:
    """Read the results of a folder.

    Args:
        folder: Where the log lies.

    Returns:
        Results by regime.
    """
    rows = results_log.read(folder / LOG)
    return {regime: report.select(rows, recipe) for regime, recipe in RECIPES.items()}


def tables(folder: Path) -> dict[str, str]:
    """Write all tables of a folder's results.

    Args:
        folder: Where log and times lie.

    Returns:
        Tables in Markdown: "photos answers", "photos missing" of trainings, "photos classes" of
        those that were not trained, "photos boxes" of what merges, "photos short" of differences
        from scratch, and one per regime that has results.
    """
    found = read(folder)
    ratios = read_ratios(folder / TIMES)
    answers = report.answers(found, QUESTIONS, TOP1, every=True)
    more = report.answers(found, UNSEEN_QUESTIONS, UNSEEN, every=True)
    made = {
        "photos answers": answers + more.split("\n", 2)[2],
        "photos missing": report.missing_seeds(found, ALL_QUESTIONS, RECIPES),
    }
    for regime, results in found.items():
        if (REFERENCE, "steps") in results:
            board = report.board(results, ratios, TOP1)
            rows = map(report.cells, board)
            deviation = 100 * report.seed_deviation(results, TOP1)
            made[f"photos {regime}"] = (
                markdown(HEADER, rows)
                + f"\nStandard deviation of unpruned training's top-1 from seed to seed: "
                f"{deviation:.2f} points.\n"
            )
            if regime == "scratch":
                made["photos short"] = markdown(SHORT_HEADER, _short(board))
    if (folder / BOXES).exists():
        made["photos boxes"] = _boxes(json.loads((folder / BOXES).read_text()))
    if (REFERENCE, "steps") in found["unseen"]:
        made["photos classes"] = markdown(UNSEEN_HEADER, _unseen(found["unseen"]))
    return made


def _short(rows: Sequence[report.BoardRow]) -> list[list[str]]:
    """Write what each variant gains over unpruned training, a row per variant."""
    found = {(row.variant, row.budget): row for row in rows}
    cells = []
    for name in dict.fromkeys(row.variant for row in rows if row.variant != REFERENCE):
        gaps = [found.get((name, budget)) for budget in BUDGETS]
        step = next(row.step for row in gaps if row is not None)
        texts = ("-" if row is None else f"{signed(row.gap)} ({row.gap.seeds})" for row in gaps)
        cells.append([name, VARIANTS[name].about, f"{step:.2f}", *texts])
    return cells


def write_boxes(folder: Path, found: Sequence[Mapping[str, Any]], photographs: int) -> None:
    """Write what the boxes say of each model.

    Args:
        folder: Where the log lies.
        found: By model its training and the lift of each plan at test time.
        photographs: Most photographs that were measured.
    """
    made = {"photographs": photographs, "models": list(found)}
    (folder / BOXES).write_text(json.dumps(made, indent=1) + "\n")


def _boxes(made: Mapping[str, Any]) -> str:
    """Write the lift of each plan on the objects' boxes, mean and range over seeds."""
    rows: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    for model in made["models"]:
        rows.setdefault((model["variant"], model["budget"]), []).append(model["lift"])
    cells = []
    for (variant, budget), lifts in sorted(rows.items()):
        values = [[lift[plan] for lift in lifts] for plan in BOXES_PLANS]
        texts = (f"{mean(each):.2f} ({min(each):.2f}-{max(each):.2f})" for each in values)
        cells.append([variant, f"equal {budget}", str(len(lifts)), *texts])
    return markdown(BOXES_HEADER, cells)


def _unseen(results: report.Results) -> list[list[str]]:
    """Write the scores on classes that were not trained, a row per variant and budget."""
    rows = []
    for name, budget in results:
        cells = [name, "-" if name == REFERENCE else f"equal {budget}"]
        cells.append(str(len(results[name, budget])))
        for measure in (UNSEEN, UNSEEN_NAMES):
            own = report.scores(results, (name, budget), measure)
            gap = difference(own, report.scores(results, (REFERENCE, "steps"), measure))
            cells.append(f"{100 * sum(own.values()) / len(own):.1f}")
            cells.append("-" if name == REFERENCE else signed(gap))
        rows.append(cells)
    return rows


def write() -> None:
    """Write the tables of the pages, and the charts."""
    for page in PAGES:
        page.write_text(fill(page.read_text(), tables(RESULTS)))
    ratios = read_ratios(RESULTS / TIMES)
    results = read(RESULTS)["scratch"]
    if (REFERENCE, "steps") in results:
        chart.draw_front(report.board(results, ratios, TOP1), TOP1, RESULTS / "photos.svg")
        chart.draw_curves(results, TOP1, RESULTS / "photos-curves.svg")
