"""What the study asks. Questions, margins and seeds are written here before the trainings run."""

from __future__ import annotations

from functools import partial

from benchmarks.board.measure import Measure
from benchmarks.board.questions import Question
from benchmarks.board.variants import REFERENCE
from benchmarks.quality.recipe import RECIPES
from benchmarks.quality.scores import TEST_PLANS

MRR = Measure("mrr", "MRR", margin=0.01, tests=tuple(TEST_PLANS))
"""The mean reciprocal rank among the held-out names; a point of it counts as equal."""

_ask = partial(Question, regimes=tuple(RECIPES), written="2026-11-25")

LOWRES, RANDOM, TOME = "pool, long end", "random 0.5, end", "tome"
THIRD, LEVEL = "tome 0.36", "tome 0.48, end"

QUESTIONS = (
    _ask("Similar tokens merged in every block by ToMe (the preset half): as good as unpruned "
             "training at equal steps?", TOME, first=2),
    _ask("Is training with ToMe better than unpruned training at equal operations?",
             TOME, "operations", first=2),
    _ask("Trained with ToMe: does half of the token-layers at test time, by ToMe, score as all "
             "tokens?", TOME, "operations", TOME, "operations", "half by tome", first=2),
    _ask("Does merging by ToMe choose better than chance, at the same operations and steps?",
             TOME, other=RANDOM, regimes=("scratch",), first=2),
    _ask("Half the side of the picture, with an unpruned end (the preset lowres): as good as "
             "unpruned training at equal steps?", LOWRES, first=5),
    _ask("Is the preset lowres better than unpruned training at equal operations?",
             LOWRES, "operations", first=5),
    _ask("Does the preset half score better than the preset paper, which costs more? (Asked "
             "after the trainings.)",
             TOME, other="paper", regimes=("scratch",), seeds=5, first=2, written="2026-11-26"),
    _ask("Does the preset lowres score better than half at the same operations? (Asked after "
             "the trainings.)", LOWRES, "operations", TOME, "operations",
             regimes=("scratch",), seeds=5, first=5, written="2026-11-26"),
    _ask("The preset third: as good as unpruned training at equal steps?", THIRD,
             regimes=("scratch",), seeds=5, first=5, written="2026-11-29"),
    _ask("Is training with the preset third, 0.4 of the step, better than unpruned training at "
             "equal operations?", THIRD, "operations",
             regimes=("scratch",), first=2, written="2026-11-28"),
    _ask("Does the preset third score better than half at the same operations?",
             THIRD, "operations", TOME, "operations",
             regimes=("scratch",), first=2, written="2026-11-28"),
    _ask("Does the preset third score better than lowres at the same operations?",
             THIRD, "operations", LOWRES, "operations",
             regimes=("scratch",), seeds=5, first=5, written="2026-11-28"),
    _ask("Does the preset third score better than level at the same operations?",
             THIRD, "operations", LEVEL, "operations",
             regimes=("scratch",), seeds=5, first=5, written="2026-11-29"),
    _ask("Does the preset third score better than fast at the same operations?",
             THIRD, "operations", "fast", "operations",
             regimes=("scratch",), seeds=5, first=5, written="2026-11-29"),
    _ask("Does the preset third score better than paper at the same operations?",
             THIRD, "operations", "paper", "operations",
             regimes=("scratch",), seeds=5, first=5, written="2026-11-29"),
    _ask("Half of the patches at the input, at random, with an unpruned end: as good as "
             "unpruned training at equal steps?", RANDOM),
    _ask("Is random half at the input, with an unpruned end, better than unpruned training at "
             "equal operations?", RANDOM, "operations"),
    _ask("Does the class token's attention choose better than chance, at the same stages?",
             "attention staged, end", other="random staged, end", regimes=("scratch",)),
    _ask("Does the text choose better than chance, at the same stages?",
             "text 0.5 staged, end", other="random staged, end", regimes=("scratch",)),
    _ask("Does the text choose better than the picture alone?",
             "text 0.5 staged, end", other="attention staged, end", regimes=("scratch",)),
    _ask("Does similarity to the text in the joint embedding choose better than chance, at the "
             "same stages?", "similarity staged, end", other="random staged, end",
             regimes=("scratch",), seeds=5, written="2026-11-26"),
    _ask("Is a picture's own text better to choose by than another picture's?",
             "similarity staged, end", other="similarity shuffled", regimes=("scratch",), seeds=5,
             written="2026-11-26"),
    _ask("Do clusters of similar patches, which leave first, choose better than chance at the "
             "input?", "cluster 0.5, end", other=RANDOM, regimes=("scratch",)),
    _ask("Dropping at once at the input or in stages, both at random?",
             RANDOM, other="random staged, end", regimes=("scratch",)),
    _ask("Trained by the preset lowres: does half of the token-layers at test time, by ToMe, "
             "score as all tokens?",
             LOWRES, "operations", LOWRES, "operations", "half by tome", first=5),
    _ask("After unpruned training: does half of the token-layers at test time, by ToMe, score "
             "as all tokens?",
             REFERENCE, test="half by tome"),
)  # fmt: skip
"""In the order of the page."""
