"""`python -m benchmarks.quality.page`: write the tables of docs/quality.md and the chart.

All are made anew from the committed results log.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.quality import chart, report, results_log
from benchmarks.quality.cost import read_ratios
from benchmarks.quality.recipe import RECIPES
from benchmarks.quality.report import ReportRow, compare, signed
from benchmarks.quality.stats import difference

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results"

COMPARED = (
    ("fast", "random"),
    ("paper", "random"),
    ("fast 0.51 + finish", "random 0.51 + finish"),
    ("fast 0.51 warm + finish", "random 0.51 warm + finish"),
    ("fast 0.51 warm + finish", "fast 0.51 t=0 warm + finish"),
    ("paper", "paper shuffled"),
    ("fast", "fast shuffled"),
    ("random by caption", "random"),
    ("paper + finish", "paper"),
    ("random + finish", "random"),
)
"""What the page compares besides each variant with unpruned training."""


def rows_of(family: str) -> list[ReportRow]:
    """Build a family's report from the committed results.

    Args:
        family: A key of `RECIPES`.

    Returns:
        Its rows; none without results.
    """
    recipe = RECIPES[family]
    results = report.select(results_log.read(RESULTS / "quality.jsonl"), recipe)
    ratios = read_ratios(RESULTS / f"{family}-steps.json")
    return report.make_report(results, recipe, ratios) if results else []


def comparisons() -> str:
    """Write the comparisons of `COMPARED` as a table in Markdown."""
    results = report.select(results_log.read(RESULTS / "quality.jsonl"), RECIPES["clip"])
    rows = ["| variant | less | seeds | MRR, points | validation loss | training loss |\n",
            "|---|---|---|---|---|---|\n"]  # fmt: skip
    for one, two in COMPARED:
        ranks, loss = (compare(results, one, two, score) for score in ("mrr", "loss"))
        trained = [{seed: r["losses"][-1] for seed, r in results[n].items()} for n in (one, two)]
        rows.append(
            f"| {one} | {two} | {ranks.seeds} | {signed(ranks, 100, 1)} | "
            f"{signed(loss)} | {signed(difference(*trained))} |\n"
        )
    return "".join(rows)


def fill(text: str) -> str:
    """Replace the tables of the page, between their marks.

    Args:
        text: The page.

    Returns:
        The page with the tables of the committed results.
    """
    tables = {"pairs": comparisons(), **{f: report.markdown(rows_of(f)) for f in RECIPES}}
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        if begin in text:
            head, rest = text.split(begin)
            text = f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    """Write the page, the tables beside the log and the chart."""
    page = DOCS / "quality.md"
    page.write_text(fill(page.read_text()))
    for family in RECIPES:
        rows = rows_of(family)
        (RESULTS / f"{family}.md").write_text(report.markdown(rows))
        if (RESULTS / f"{family}-steps.json").exists():
            chart.draw(rows, RESULTS / f"{family}.svg")


if __name__ == "__main__":
    main()
