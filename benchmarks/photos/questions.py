"""What the study asks. Questions, margins and seeds are written here before the trainings run."""

from __future__ import annotations

from functools import partial

from benchmarks.board.measure import Measure
from benchmarks.board.questions import Question
from benchmarks.board.variants import REFERENCE
from benchmarks.photos.scores import TEST_PLANS

MARGIN = 0.005
"""Half a point counts as equal."""

TOP1 = Measure("top1", "top-1", MARGIN, tuple(TEST_PLANS))
"""The share of the validation photographs whose own class has the nearest name."""

UNSEEN = Measure("unseen_means", "top-1 of unseen classes", MARGIN, tuple(TEST_PLANS))
"""The same over classes that were never trained, by means of photographs in place of names."""

UNSEEN_NAMES = Measure("unseen_top1", "top-1 by unseen names", MARGIN, tuple(TEST_PLANS))
"""The same by names that were never trained."""

_ask = partial(Question, regimes=("scratch",), written="2026-11-28")
_EVERYWHERE = ("scratch", "unseen", "continued")
HALF, LOWRES, RANDOM = "tome", "pool, long end", "random 0.5, end"
THIRD, LEVEL = "tome 0.36", "tome 0.48, end"

QUESTIONS = (
    _ask("Similar tokens merged in every block by ToMe (the preset half): as good as unpruned "
         "training at equal steps?", HALF, regimes=_EVERYWHERE),
    _ask("Is training with ToMe better than unpruned training at equal operations?",
         HALF, "operations", regimes=_EVERYWHERE),
    _ask("Trained with ToMe: does half of the token-layers at test time, by ToMe, score as all "
         "tokens?", HALF, "operations", HALF, "operations", "half by tome"),
    _ask("After unpruned training: does half of the token-layers at test time, by ToMe, score as "
         "all tokens?", REFERENCE, test="half by tome"),
    _ask("After unpruned training: does half of the token-layers by ToMe score as half by the "
         "class token's attention?",
         REFERENCE, test="half by tome", other_test="half by attention"),
    _ask("Half the side of the picture, with an unpruned end (the preset lowres): as good as "
         "unpruned training at equal steps?", LOWRES),
    _ask("Is the preset lowres better than unpruned training at equal operations?",
         LOWRES, "operations"),
    _ask("Does the preset lowres score better than half at the same operations?",
         LOWRES, "operations", HALF, "operations"),
    _ask("The preset level, 0.6 of the step: as good as unpruned training at equal steps?",
         LEVEL, first=2, seeds=18, looks=3),
    _ask("Is training with the preset level better than unpruned training at equal operations?",
         LEVEL, "operations", first=2, seeds=6),
    _ask("The preset third: as good as unpruned training at equal steps?",
         THIRD, first=2, seeds=6, written="2026-11-29"),
    _ask("Is training with the preset third, 0.4 of the step, better than unpruned training at "
         "equal operations?", THIRD, "operations", first=2, seeds=6),
    _ask("Does the preset third score better than half at the same operations?",
         THIRD, "operations", HALF, "operations", first=2, seeds=6),
    _ask("Does the preset third score better than lowres at the same operations?",
         THIRD, "operations", LOWRES, "operations", first=2, seeds=6),
    _ask("Does the preset third score better than level at the same operations? (Asked after the "
         "trainings.)", THIRD, "operations", LEVEL, "operations", first=2, seeds=6),
    _ask("Does the preset third score better than fast at the same operations?",
         THIRD, "operations", "fast", "operations", first=2, seeds=6, written="2026-11-29"),
    _ask("Does the preset third score better than paper at the same operations?",
         THIRD, "operations", "paper", "operations", first=2, seeds=6, written="2026-11-29"),
    _ask("Half of the patches at the input, at random, with an unpruned end: as good as unpruned "
         "training at equal steps?", RANDOM),
    _ask("Is random half at the input, with an unpruned end, better than unpruned training at "
         "equal operations?", RANDOM, "operations"),
    _ask("Does merging by ToMe choose better than chance, at the same operations and steps?",
         HALF, other=RANDOM),
    _ask("The preset fast: as good as unpruned training at equal steps?", "fast"),
    _ask("Is the preset fast better than unpruned training at equal operations?",
         "fast", "operations"),
    _ask("The preset paper: as good as unpruned training at equal steps?", "paper"),
    _ask("Is the preset paper better than unpruned training at equal operations?",
         "paper", "operations"),
)  # fmt: skip
"""About `TOP1`, in the order of the page."""

UNSEEN_QUESTIONS = (
    _ask("Classes that were never trained, by means of their photographs: is half as good as "
         "unpruned training at equal steps?", HALF, regimes=("unseen",)),
    _ask("The same: is half better than unpruned training at equal operations?",
         HALF, "operations", regimes=("unseen",)),
)  # fmt: skip
"""About `UNSEEN`."""

ALL_QUESTIONS = (*QUESTIONS, *UNSEEN_QUESTIONS)
