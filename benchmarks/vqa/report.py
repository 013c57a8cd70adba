"""The tables of the study, from its log alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import results_log
from benchmarks.stats import Difference, difference
from benchmarks.tables import fill, markdown, signed
from benchmarks.vqa.recipe import EMOJIS
from benchmarks.vqa.variants import REFERENCE, RIVAL, VARIANTS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
LOG = "vqa.jsonl"
PAGE = ROOT / "research" / "text.md"

HEADER = (
    "what chooses", "budget", "steps", "step: counted", "seeds", "right %", "less unpruned",
    "less random", "share %", "lift", "on the box", "all tokens: right %",
    "another question", "sign turned",
)  # fmt: skip
BUDGETS = {"none": "not trained", "steps": "equal steps", "operations": "equal operations"}

Group = tuple[str, str, str, int, str]
"""Source, arch, regime, objects and kinds: what a table is about."""


def line(row: Mapping[str, Any]) -> str:
    """Describe a result in a line."""
    recipe, found = row["recipe"], row["scores"]["plan"]
    lift = f", lift {found['lift']:.2f}" if "lift" in found else ""
    return (
        f"{recipe['arch']} {recipe['objects']} {recipe['source']}, {recipe['regime']}: "
        f"{row['variant']}, "
        f"{BUDGETS[row['budget']]}, seed {row['seed']}: {100 * found['right']:.1f}% right{lift}, "
        f"{row['seconds']:.0f} s"
    )


def group(rows: list[dict[str, Any]]) -> dict[Group, dict[tuple[str, str], dict[int, Any]]]:
    """Sort results: by table, then by variant and budget, then by seed.

    Args:
        rows: The log.

    Returns:
        The results of variants that still mean what they meant when they were trained.
    """
    found: dict[Group, dict[tuple[str, str], dict[int, Any]]] = {}
    for budget in BUDGETS:
        for name, variant in VARIANTS.items():
            for row in rows:
                if (row["variant"], row["budget"]) != (name, budget):
                    continue
                if row["definition"] == variant.definition:
                    r = row["recipe"]
                    key = (r["source"], r["arch"], r["regime"], r["objects"], r["kinds"])
                    own = found.setdefault(key, {}).setdefault((name, budget), {})
                    own[row["seed"]] = row
    return found


def right(results: Mapping[int, Any], test: str = "plan") -> dict[int, float]:
    """Return the share of right answers by seed."""
    return {seed: row["scores"][test]["right"] for seed, row in results.items()}


def compare(
    results: Mapping[tuple[str, str], dict[int, Any]], one: tuple[str, str], other: tuple[str, str]
) -> Difference | None:
    """Compute the difference of two rows' right answers; None without a seed in common."""
    if not set(results.get(one, {})) & set(results.get(other, {})):
        return None
    return difference(right(results[one]), right(results[other]))


def cells(results: Mapping[tuple[str, str], dict[int, Any]], key: tuple[str, str]) -> list[str]:
    """Write a row of a table under `HEADER`."""
    name, budget = key
    own = results[key]
    first = next(iter(own.values()))
    plans = [row["scores"]["plan"] for row in own.values()]
    rival = f"{RIVAL} {VARIANTS[name].plan}"
    unpruned = (REFERENCE, "none" if budget == "none" else "steps")

    def average(test: str) -> str:
        if any(test not in row["scores"] for row in own.values()):
            return "-"
        return f"{100 * mean(right(own, test).values()):.1f}"

    return [
        name,
        BUDGETS[budget],
        str(first["steps"]),
        f"{first['operations']:.2f}",
        str(len(own)),
        average("plan"),
        "-" if name == REFERENCE else _gap(compare(results, key, unpruned)),
        "-" if name in (REFERENCE, rival) else _gap(compare(results, key, (rival, budget))),
        f"{100 * mean(p['share'] for p in plans):.1f}" if "share" in plans[0] else "-",
        f"{mean(p['lift'] for p in plans):.2f}" if "lift" in plans[0] else "-",
        f"{mean(p['box lift'] for p in plans):.2f}" if "box lift" in plans[0] else "-",
        average("all tokens"),
        average("another question"),
        average("sign turned"),
    ]


def _gap(found: Difference | None) -> str:
    return "-" if found is None else signed(found)


def tables(folder: Path) -> dict[str, str]:
    """Write a table in Markdown for each arch, regime, number of objects and kinds of question.

    Args:
        folder: Where the log lies.

    Returns:
        Tables by name.
    """
    made = {}
    for (source, *rest), results in group(results_log.read(folder / LOG)).items():
        name = " ".join(map(str, rest)) + ("" if source == EMOJIS else f" {source}")
        made[name] = markdown(HEADER, (cells(results, key) for key in results))
    return made


def write(made: Mapping[str, str]) -> None:
    """Put the tables into the page of the docs."""
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
