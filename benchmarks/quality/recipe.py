"""How the models of the study are trained; the same for all variants."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.board.recipe import BoardRecipe


@dataclass(frozen=True)
class Recipe(BoardRecipe):
    """A training of a small CLIP on emojis.

    Attributes:
        regime: "scratch", from random weights; "continued", from the weights that a training by
            `BASE` with the same seed ends with.
        epochs: Passes over the pairs of an unpruned training.
        styles: Emoji sets to train on, joined by commas; "" for all. Scores are on all.
        pairs: Most training pairs to use; None for all.
    """

    epochs: int = 5
    styles: str = ""
    pairs: int | None = None

    def steps(self, pairs: int) -> int:
        """Count the optimizer steps of an unpruned training.

        Args:
            pairs: Training pairs there are.

        Returns:
            The steps; an epoch's last, incomplete batch is left out.
        """
        return self.epochs * (min(pairs, self.pairs or pairs) // self.batch)


BASE = Recipe(styles="openmoji,twemoji,noto")
"""What a continued training starts from: unpruned, on three of the ten sets."""

RECIPES = {
    "scratch": Recipe(),
    "continued": Recipe(regime="continued", epochs=3, learning_rate=1e-3),
}


def make_recipe(regime: str, *, quick: bool = False) -> Recipe:
    """Return the recipe of a regime.

    Args:
        regime: A key of `RECIPES`.
        quick: Whether it should take minutes: fewer pairs and epochs.

    Returns:
        The recipe.

    Raises:
        ValueError: If there is no such regime.
    """
    if regime not in RECIPES:
        raise ValueError(f"regime {regime!r} is not known; choose one of {list(RECIPES)}")
    recipe = RECIPES[regime]
    return replace(recipe, epochs=2, pairs=1280) if quick else recipe
