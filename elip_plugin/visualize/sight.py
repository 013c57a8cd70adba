"""A model to look through: what a host gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Sight:
    """A pruned model with its own preparation of images and texts.

    Attributes:
        name: The model's name.
        model: The patched model, in evaluation mode.
        prepare: Makes an image [3, height, width] of a Pillow image.
        encode_text: Makes of a caption what `elip_plugin.guide` takes, [1, E].
        encode_image: Runs the vision tower on images [1, 3, height, width].
        grid: Rows and columns of patches.
        mean: What `prepare` subtracts per colour, in 0 to 1.
        std: What it then divides by.
        weights: Where the weights come from, for the reader.
    """

    name: str
    model: nn.Module
    prepare: Callable[[Any], Tensor]
    encode_text: Callable[[str], Tensor]
    encode_image: Callable[[Tensor], object]
    grid: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str
