"""`python -m benchmarks.readme`: README's chart and the table of plans, from the committed logs.

The logs are those of the boards, `docs/results/board.jsonl` and `docs/results/photos.jsonl`; see
`benchmarks.quality` and `benchmarks.photos`, whose reports have every row.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.board import chart, report
from benchmarks.board.measure import Measure
from benchmarks.board.report import BoardRow
from benchmarks.photos import page as photos_page
from benchmarks.photos.questions import TOP1
from benchmarks.quality import page as quality_page
from benchmarks.quality.questions import MRR
from benchmarks.tables import fill, markdown, signed

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "plans.md"
CHART = ROOT / "docs" / "results" / "gain.svg"

PLANS = {
    "`half`": "tome",
    "`level`": "tome 0.48, end",
    "`third`": "tome 0.36",
    "`lowres`": "pool, long end",
    "random half": "random 0.5, end",
    "`fast`": "fast",
    "`paper`": "paper",
}
"""Variants of the boards by what a reader calls them."""

HEADER = (
    "plan", "step", "emojis: equal steps", "equal operations", "photographs: equal steps",
    "equal operations",
)  # fmt: skip


def boards() -> dict[str, tuple[Measure, list[BoardRow]]]:
    """Read the rows from scratch of both boards, named as in `PLANS`.

    Returns:
        The measure and the rows, by what is trained on.
    """
    found = {
        "emojis": (MRR, quality_page.read(quality_page.RESULTS)["scratch"]),
        "photographs": (TOP1, photos_page.read(photos_page.RESULTS)["scratch"]),
    }
    names = {variant: name for name, variant in PLANS.items()}
    return {
        title: (
            measure,
            [
                replace(row, variant=names[row.variant])
                for row in report.board(results, {}, measure)
                if row.variant in names
            ],
        )
        for title, (measure, results) in found.items()
    }


def tables() -> dict[str, str]:
    """Write the table of plans: what each gains over unpruned training.

    Returns:
        The table in Markdown, by its mark.
    """
    cells: dict[str, list[str]] = {}
    read = boards()
    for name in PLANS:
        named = [row for _, rows in read.values() for row in rows if row.variant == name]
        steps = {f"{row.step:.2f}" for row in named}
        cells[name] = [name, ", ".join(sorted(steps))]
        for _, rows in read.values():
            for budget in ("steps", "operations"):
                own = [row for row in rows if (row.variant, row.budget) == (name, budget)]
                cells[name].append(f"{signed(own[0].gap)} ({own[0].gap.seeds})" if own else "")
    return {"plans": markdown(HEADER, cells.values())}


def main() -> None:
    """Write the table into its page, and the chart."""
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
    read = boards()
    shown = {
        f"{title}, trained from scratch": (
            measure,
            [
                replace(row, variant=name.strip("`"))
                for name in PLANS
                for row in rows
                if row.variant == name
                and row.gap.seeds > 2  # an interval of two is as wide as the chart
            ],
        )
        for title, (measure, rows) in read.items()
    }
    chart.draw_gain(shown, CHART)


if __name__ == "__main__":
    main()
