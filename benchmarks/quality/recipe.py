"""How the models of the study are trained; the same for all variants."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

SIDE = 64
"""Pixels of a picture's side."""


@dataclass(frozen=True)
class Recipe:
    """A training of a small CLIP on emojis.

    Attributes:
        regime: "scratch", from random weights; "continued", from the weights that a training by
            `BASE` with the same seed ends with.
        epochs: Passes over the pairs of an unpruned training.
        batch: Pairs per step.
        width: Width of both towers.
        depth: Blocks of the vision tower.
        text_depth: Blocks of the text tower.
        patch: Pixels of a patch's side; pictures have 64.
        learning_rate: Highest learning rate; it rises linearly and falls as a cosine.
        warmup: Share of the training over which the learning rate rises.
        weight_decay: AdamW's, for weights of two or more dimensions.
        clip: Norm to which gradients are clipped.
        precision: "fp32", or "bf16" for autocast.
        styles: Emoji sets to train on, joined by commas; "" for all. Scores are on all.
        pairs: Most training pairs to use; None for all.
    """

    regime: str = "scratch"
    epochs: int = 5
    batch: int = 128
    width: int = 64
    depth: int = 6
    text_depth: int = 2
    patch: int = 8
    learning_rate: float = 2e-3
    warmup: float = 0.1
    weight_decay: float = 0.1
    clip: float = 1.0
    precision: str = "fp32"
    styles: str = ""
    pairs: int | None = None

    @property
    def patches(self) -> int:
        """Patches N of a picture."""
        return (SIDE // self.patch) ** 2

    def steps(self, pairs: int) -> int:
        """Count the optimizer steps of an unpruned training.

        Args:
            pairs: Training pairs there are.

        Returns:
            The steps; an epoch's last, incomplete batch is left out.
        """
        return self.epochs * (min(pairs, self.pairs or pairs) // self.batch)

    def rate(self, step: int, steps: int) -> float:
        """Compute the learning rate.

        Args:
            step: The step, from 0.
            steps: Steps of the whole training.

        Returns:
            The learning rate of that step.
        """
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


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
