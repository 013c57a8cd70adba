"""How the small CLIPs of a board are built and trained; the same for all variants."""

from __future__ import annotations

import math
from dataclasses import dataclass

SIDE = 64
"""Pixels of a picture's side."""


@dataclass(frozen=True)
class BoardRecipe:
    """A training of a small CLIP.

    Attributes:
        regime: "scratch", from random weights, or another name for what the board trains.
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
    """

    regime: str = "scratch"
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

    @property
    def patches(self) -> int:
        """Patches N of a picture."""
        return (SIDE // self.patch) ** 2

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
