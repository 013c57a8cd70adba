"""How the models of the study are trained; the same for all variants."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

SIDE = 64
"""Pixels of an image's side."""


@dataclass(frozen=True)
class Recipe:
    """A training of a small model on OpenMoji.

    Attributes:
        family: "clip" (OpenCLIP), "albef" or "blip" (LAVIS).
        epochs: Passes over the pairs.
        batch: Pairs per step.
        width: Width of both towers.
        depth: Blocks of the vision tower.
        text_depth: Blocks of the text tower.
        patch: Pixels of a patch's side; images have 64.
        learning_rate: Highest learning rate; it rises over the first 5% and falls as a cosine.
        weight_decay: AdamW's.
        pairs: Most training pairs to use; None for all.
    """

    family: str = "clip"
    epochs: int = 8
    batch: int = 64
    width: int = 64
    depth: int = 12
    text_depth: int = 2
    patch: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    pairs: int | None = None

    @property
    def patches(self) -> int:
        """Patches N of an image."""
        return (SIDE // self.patch) ** 2

    def steps(self, pairs: int) -> int:
        """Count the optimizer steps.

        Args:
            pairs: Training pairs there are.

        Returns:
            Steps of the whole training; an epoch's last, incomplete batch is left out.
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
        warm = max(1, round(0.05 * steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


RECIPES = {
    "clip": Recipe(),
    "albef": Recipe(family="albef", epochs=4, batch=32, learning_rate=5e-4),
    "blip": Recipe(family="blip", epochs=4, batch=32, learning_rate=1e-3),
}


def make_recipe(family: str, *, quick: bool = False) -> Recipe:
    """Return the recipe of a family.

    Args:
        family: A key of `RECIPES`.
        quick: Whether it should take minutes: fewer pairs and epochs.

    Returns:
        The recipe.

    Raises:
        ValueError: If there is no such family.
    """
    if family not in RECIPES:
        raise ValueError(f"family {family!r} is not known; choose one of {list(RECIPES)}")
    recipe = RECIPES[family]
    return replace(recipe, epochs=8, pairs=1280) if quick else recipe
