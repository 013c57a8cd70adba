"""What a board asks, and what a difference says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.board.grid import training
from benchmarks.board.measure import ALL
from benchmarks.board.recipe import BoardRecipe
from benchmarks.board.variants import REFERENCE
from benchmarks.stats import Difference

ENOUGH = 5
"""Seeds below which an answer proves nothing."""


@dataclass(frozen=True)
class Question:
    """A comparison of two rows of the board.

    Attributes:
        text: The question.
        variant: The row that it is about.
        budget: Its budget, "steps" or "operations".
        other: The row that it is compared with.
        other_budget: That row's budget.
        test: The test of the row that it is about; "all", or a plan at test time.
        other_test: The test of the other row.
        seeds: How many seeds.
        first: The first of them; above all that were seen when the row was chosen.
        looks: How often the answer is looked at while seeds are added. The 5% by which an interval
            may miss are shared among them (Bonferroni).
        regimes: Where it is asked.
        written: Date on which question, margin and seeds were fixed.
    """

    text: str
    variant: str
    budget: str = "steps"
    other: str = REFERENCE
    other_budget: str = "steps"
    test: str = ALL
    other_test: str = ALL
    seeds: int = 8
    first: int = 0
    looks: int = 1
    regimes: Sequence[str] = field(kw_only=True)
    written: str = field(kw_only=True)

    @property
    def confidence(self) -> float:
        """Of the answer's interval."""
        return 1 - 0.05 / self.looks


def needed(
    questions: Sequence[Question], recipes: Mapping[str, BoardRecipe]
) -> list[dict[str, Any]]:
    """List the trainings that questions need, seed by seed.

    Args:
        questions: The questions.
        recipes: How to train, by regime.

    Returns:
        Trainings, each once; see `benchmarks.board.grid.training`.
    """
    rows: list[dict[str, Any]] = []
    for place in range(max(question.seeds for question in questions)):
        for question in questions:
            seed = question.first + place
            for regime in question.regimes if place < question.seeds else ():
                for name, budget in (
                    (question.other, question.other_budget),
                    (question.variant, question.budget),
                ):
                    row = training(recipes[regime], name, budget, seed)
                    if row not in rows:
                        rows.append(row)
    return rows


def verdict(found: Difference, margin: float) -> str:
    """Decide what a difference of scores says.

    Args:
        found: The variant's score minus the other's, with its 95% interval.
        margin: What counts as equal.

    Returns:
        "better", "worse" or "worse by less than 1 point" (of the margin) where the interval leaves
        out 0; "equal within 1 point" where it lies within the margin; "not worse by 1 point", "not
        better by 1 point" where one end does; "open" otherwise, and "too few seeds" below `ENOUGH`.
    """
    points = f"{100 * margin:g} point" + ("" if margin == 0.01 else "s")
    if found.seeds < ENOUGH:
        return "too few seeds"
    if found.low > 0:
        return "better"
    if found.high < 0:
        return f"worse by less than {points}" if found.low > -margin else "worse"
    if found.low > -margin and found.high < margin:
        return f"equal within {points}"
    if found.low > -margin:
        return f"not worse by {points}"
    if found.high < margin:
        return f"not better by {points}"
    return "open"
