"""The board: each row's cost and scores beside unpruned training, and the answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from benchmarks.board.cost import average
from benchmarks.board.grid import BUDGETS
from benchmarks.board.measure import ALL, Measure
from benchmarks.board.questions import Question, needed, verdict
from benchmarks.board.recipe import BoardRecipe
from benchmarks.board.variants import REFERENCE, VARIANTS
from benchmarks.stats import Difference, difference
from benchmarks.tables import markdown, signed

Results = Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]]
"""Rows of the results log by (variant, budget), then by seed."""


def select(rows: Iterable[Mapping[str, Any]], recipe: BoardRecipe) -> dict[tuple[str, str], Any]:
    """Find a recipe's results among the rows of the log.

    Args:
        rows: All rows.
        recipe: The recipe.

    Returns:
        Rows by variant and budget, in the table's order, then by seed; without those of a variant
        that meant something else when it was trained.
    """
    own = [row for row in rows if row["recipe"] == asdict(recipe)]
    found: dict[tuple[str, str], Any] = {}
    for name, variant in VARIANTS.items():
        for budget in BUDGETS:
            for row in own:
                same = (row["variant"], row["budget"]) == (name, budget)
                if same and row["definition"] == variant.definition:
                    found.setdefault((name, budget), {})[row["seed"]] = row
    return found


def scores(
    results: Results, key: tuple[str, str], measure: Measure, test: str = ALL
) -> dict[int, float]:
    """Return the scores by seed of a row of the board.

    Args:
        results: From `select`.
        key: Variant and budget.
        measure: Which score.
        test: `ALL`, or a plan at test time.

    Returns:
        Scores, 0 to 1; empty if the row was not trained.
    """
    return {seed: row["scores"][test][measure.key] for seed, row in results.get(key, {}).items()}


def answer(results: Results, question: Question, measure: Measure) -> Difference | None:
    """Compute the answer to a question.

    Args:
        results: From `select`.
        question: The question.
        measure: Which score is compared.

    Returns:
        The difference of scores over the seeds that both rows have; None without any.
    """
    seeds = range(question.first, question.first + question.seeds)
    sides = (
        (question.variant, question.budget, question.test),
        (question.other, question.other_budget, question.other_test),
    )
    one, two = (
        {
            seed: score
            for seed, score in scores(results, (name, budget), measure, test).items()
            if seed in seeds
        }
        for name, budget, test in sides
    )
    return difference(one, two, question.confidence) if set(one) & set(two) else None


def seed_deviation(results: Results, measure: Measure) -> float:
    """Compute the standard deviation of unpruned training's score from seed to seed."""
    found = list(scores(results, (REFERENCE, "steps"), measure).values())
    return stdev(found) if len(found) > 1 else math.nan


COLUMNS = ("variant", "what it is", "step: counted", "measured", "budget", "seeds")
"""The first columns of a board's table; its measure and its tests follow."""

SHORT = (0, 2, 4, 5, 6, 7)
"""Columns that a terminal has room for: with the measure, and the difference from unpruned."""


@dataclass(frozen=True)
class BoardRow:
    """A variant's results at one budget, means over its seeds.

    Attributes:
        variant: Its name.
        budget: "steps" or "operations".
        step: Counted operations of its average step over those of an unpruned one.
        measured: Measured time of its average step over an unpruned one's; None if not timed.
        score: The measure with all tokens.
        gap: That, less unpruned training's.
        loss: Cross-entropy of a picture's own name.
        tests: The measure with each of its tests.
    """

    variant: str
    budget: str
    step: float
    measured: float | None
    score: float
    gap: Difference
    loss: float
    tests: tuple[float, ...]


def board(results: Results, ratios: Mapping[str, float], measure: Measure) -> list[BoardRow]:
    """Build the table.

    Args:
        results: From `select`; the reference is among them.
        ratios: Measured times of steps; see `benchmarks.board.cost.read_ratios`.
        measure: The score that is shown.

    Returns:
        A row per variant and budget.
    """
    rows = []
    for (name, budget), seeds in results.items():
        found = list(seeds.values())
        unpruned = next(iter(results[REFERENCE, "steps"].values()))["steps"]
        own = scores(results, (name, budget), measure)
        gap = difference(own, scores(results, (REFERENCE, "steps"), measure))
        rows.append(
            BoardRow(
                name,
                budget,
                found[0]["operations"] * unpruned / found[0]["steps"],
                average(VARIANTS[name], ratios),
                mean(own.values()),
                gap,
                mean(row["scores"][ALL]["loss"] for row in found),
                tuple(
                    mean(scores(results, (name, budget), measure, test).values())
                    for test in measure.tests
                ),
            )
        )
    return rows


def cells(row: BoardRow) -> tuple[str, ...]:
    """Write a row's cells; scores in percent, differences with 95% intervals."""
    return (
        row.variant,
        VARIANTS[row.variant].about,
        f"{row.step:.2f}",
        "-" if row.measured is None else f"{row.measured:.2f}",
        f"equal {row.budget}" if row.variant != REFERENCE else "-",
        str(row.gap.seeds),
        f"{100 * row.score:.1f}",
        "-" if row.variant == REFERENCE else signed(row.gap),
        f"{row.loss:.2f}",
        *(f"{100 * test:.1f}" for test in row.tests),
    )


def missing_seeds(
    results: Mapping[str, Results], questions: Sequence[Question], recipes: Mapping[str, Any]
) -> str:
    """Write which trainings questions need and the log has not.

    Args:
        results: From `select`, by regime.
        questions: The questions.
        recipes: How to train, by regime.

    Returns:
        A list in Markdown; "Nothing." where all are there.
    """
    found: dict[tuple[str, str, str], list[int]] = {}
    for row in needed(questions, recipes):
        regime, name, budget = row["recipe"]["regime"], row["variant"], row["budget"]
        if row["seed"] not in results[regime].get((name, budget), {}):
            found.setdefault((regime, name, budget), []).append(row["seed"])
    lines = (
        f"- {regime}: {name}, equal {budget}: seeds {', '.join(map(str, sorted(seeds)))}\n"
        for (regime, name, budget), seeds in found.items()
    )
    return "".join(lines) or "Nothing.\n"


def answers(
    results: Mapping[str, Results],
    questions: Iterable[Question],
    measure: Measure,
    *,
    every: bool = False,
) -> str:
    """Write the questions with their answers as a table in Markdown.

    Args:
        results: From `select`, by regime.
        questions: The questions.
        measure: The score that they are about.
        every: Whether a question without a result has a row too.

    Returns:
        The table: a row per question and regime.
    """
    rows = []
    for question in questions:
        text = question.text
        if question.looks > 1:
            share = f"{100 * question.confidence:.1f}%"
            text += f" (Looked at {question.looks} times as seeds were added: interval of {share}.)"
        for regime in question.regimes:
            found = answer(results[regime], question, measure)
            if found is not None:
                seeds = f"{found.seeds} of {question.seeds}"
                said = verdict(found, measure.margin)
                rows.append((text, regime, said, signed(found), seeds))
            elif every:
                seeds = f"0 of {question.seeds}"
                rows.append((text, regime, "not trained yet", "-", seeds))
    header = ("question", "regime", "answer", f"{measure.name}, points", "seeds")
    return markdown(header, rows)
