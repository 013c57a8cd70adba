"""The drawing of what a stage left of a picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from elip_plugin.visualize.views import StageView

WIDTH = 208
"""Pixels of a drawing."""

WHITE, ORANGE, GRAY = (255, 255, 255), (217, 72, 15), (128, 128, 134)
FADED = 0.86
"""Opacity of the white over a patch that is no token of its own."""


def resize(image: Any) -> Any:
    """Resize a Pillow image to `WIDTH`, without smoothing."""
    from PIL.Image import Resampling

    return image.resize((WIDTH, round(WIDTH * image.size[1] / image.size[0])), Resampling.NEAREST)


def draw_stage(grid: tuple[int, int], image: Any, stage: StageView) -> Any:
    """Draw what a stage left of a picture as the model sees it; both are Pillow images.

    Patches that were dropped, or merged by an earlier stage, are faded; those that this stage
    merged are orange; groups of similar patches have their mean color, and a gray border.
    """
    from PIL import Image

    rows, columns = grid
    small = image.convert("RGB").resize((columns, rows), Image.Resampling.BOX)
    means = np.array(small, float).reshape(-1, 3)  # of each patch
    color, opacity = means.copy(), np.zeros((rows * columns, 1))
    token = np.arange(rows * columns)
    for patch in (*stage.earlier, *stage.gone):
        color[patch], opacity[patch] = WHITE, FADED
    for patch, share in stage.opacities.items():
        color[patch], opacity[patch] = ORANGE, share
    for patches in map(list, stage.groups):
        color[patches], opacity[patches] = means[patches].mean(axis=0), 1.0
        token[patches] = token[patches[0]]
    picture = np.array(resize(image.convert("RGB")), float)
    height, width, _ = picture.shape
    down, right = np.arange(height) * rows // height, np.arange(width) * columns // width
    patch = down[:, None] * columns + right  # under each pixel [height, width]
    picture += opacity[patch] * (color[patch] - picture)
    if stage.groups:
        under = token[patch]
        picture[:, :-1][under[:, :-1] != under[:, 1:]] = GRAY
        picture[:-1][under[:-1] != under[1:]] = GRAY
    return Image.fromarray(picture.round().astype(np.uint8))
