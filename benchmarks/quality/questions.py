"""What the study asks. Questions, margins and seeds are written here before the trainings run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.quality.recipe import RECIPES
from benchmarks.quality.stats import Difference
from benchmarks.quality.variants import REFERENCE

MARGIN = 0.01
"""One point of MRR: what counts as equal."""

ENOUGH = 5
"""Seeds below which an answer proves nothing."""

ALL = "all"
"""The test with all tokens; the others are the keys of `benchmarks.quality.scores.TEST_PLANS`."""


@dataclass(frozen=True)
class Question:
    """A comparison of two rows of the board.

    Attributes:
        text: The question.
        variant: The row that it is about.
        budget: Its budget, "steps" or "operations".
        other: The row that it is compared with.
        other_budget: That row's budget.
        test: The test of the row that it is about; `ALL`, or a plan at test time.
        other_test: The test of the other row.
        regimes: Where it is asked.
        seeds: How many seeds.
        first: The first of them; above all that were seen when the row was chosen.
        written: Date on which question, margin and seeds were fixed.
    """

    text: str
    variant: str
    budget: str = "steps"
    other: str = REFERENCE
    other_budget: str = "steps"
    test: str = ALL
    other_test: str = ALL
    regimes: Sequence[str] = tuple(RECIPES)
    seeds: int = 8
    first: int = 0
    written: str = "2026-11-25"


def verdict(found: Difference) -> str:
    """Decide what a difference of MRR says.

    Args:
        found: The variant's MRR minus the other's, with its 95% interval.

    Returns:
        "better", "worse" or "worse by less than 1 point" where the interval leaves out 0; "equal
        within 1 point" where it lies within the margin; "not worse by 1 point", "not better by 1
        point" where one end does; "open" otherwise, and "too few seeds" below `ENOUGH`.
    """
    if found.seeds < ENOUGH:
        return "too few seeds"
    if found.low > 0:
        return "better"
    if found.high < 0:
        return "worse by less than 1 point" if found.low > -MARGIN else "worse"
    if found.low > -MARGIN and found.high < MARGIN:
        return "equal within 1 point"
    if found.low > -MARGIN:
        return "not worse by 1 point"
    if found.high < MARGIN:
        return "not better by 1 point"
    return "open"


LOWRES, RANDOM, TOME = "pool, long end", "random 0.5, end", "tome"

QUESTIONS = (
    Question("Alike tokens merged in every block by ToMe (the preset half): as good as unpruned "
             "training at equal steps?", TOME, first=2),
    Question("Is training with ToMe better than unpruned training at equal operations?",
             TOME, "operations", first=2),
    Question("Trained with ToMe: does half of the token-layers at test time, by ToMe, score as all "
             "tokens?", TOME, "operations", TOME, "operations", "half by tome", first=2),
    Question("Does merging by ToMe choose better than chance, at the same operations and steps?",
             TOME, other=RANDOM, regimes=("scratch",), first=2),
    Question("Half the side of the picture, with an unpruned end (the preset lowres): as good as "
             "unpruned training at equal steps?", LOWRES, first=5),
    Question("Is the preset lowres better than unpruned training at equal operations?",
             LOWRES, "operations", first=5),
    Question("Does the preset half score better than the preset paper, which costs more? (Asked "
             "after the trainings.)",
             TOME, other="paper", regimes=("scratch",), seeds=5, first=2, written="2026-11-26"),
    Question("Does the preset lowres score better than half at the same operations? (Asked after "
             "the trainings.)", LOWRES, "operations", TOME, "operations",
             regimes=("scratch",), seeds=5, first=5, written="2026-11-26"),
    Question("Half of the patches at the input, at random, with an unpruned end: as good as "
             "unpruned training at equal steps?", RANDOM),
    Question("Is random half at the input, with an unpruned end, better than unpruned training at "
             "equal operations?", RANDOM, "operations"),
    Question("Does the class token's attention choose better than chance, at the same stages?",
             "attention staged, end", other="random staged, end", regimes=("scratch",)),
    Question("Does the text choose better than chance, at the same stages?",
             "text 0.5 staged, end", other="random staged, end", regimes=("scratch",)),
    Question("Does the text choose better than the picture alone?",
             "text 0.5 staged, end", other="attention staged, end", regimes=("scratch",)),
    Question("Does similarity to the text in the joint embedding choose better than chance, at the "
             "same stages?", "similarity staged, end", other="random staged, end",
             regimes=("scratch",), seeds=5, written="2026-11-26"),
    Question("Is a picture's own text better to choose by than another picture's?",
             "similarity staged, end", other="similarity shuffled", regimes=("scratch",), seeds=5,
             written="2026-11-26"),
    Question("Do clusters of alike patches, which leave first, choose better than chance at the "
             "input?", "cluster 0.5, end", other=RANDOM, regimes=("scratch",)),
    Question("Dropping at once at the input or in stages, both at random?",
             RANDOM, other="random staged, end", regimes=("scratch",)),
    Question("Trained by the preset lowres: does half of the token-layers at test time, by ToMe, "
             "score as all tokens?",
             LOWRES, "operations", LOWRES, "operations", "half by tome", first=5),
    Question("After unpruned training: does half of the token-layers at test time, by ToMe, score "
             "as all tokens?",
             REFERENCE, test="half by tome"),
)  # fmt: skip
"""In the order of the page."""
