"""How the models of the study are trained; the same for all variants."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.board.recipe import BoardRecipe


@dataclass(frozen=True)
class PhotoRecipe(BoardRecipe):
    """A training of a small CLIP on photographs of classes.

    Attributes:
        regime: "scratch", from random weights; "unseen", the same on half of the classes, scored
            on the others too; "continued", from the weights that unpruned training from scratch
            with the same seed ends with.
        steps: Optimizer steps of unpruned training.
        classes: Classes to train on, spread evenly over all; a divisor of their number.
        photos: Photographs of each class to train on.
        first: How many photographs of each class are left out before those.
    """

    steps: int = 624
    classes: int = 200
    photos: int = 200
    first: int = 0


RECIPES = {
    "scratch": PhotoRecipe(),
    "unseen": PhotoRecipe(regime="unseen", classes=100, photos=400),
    "continued": PhotoRecipe(regime="continued", steps=312, learning_rate=1e-3, first=200),
}
