"""How photographs are changed in training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 4
"""Most pixels by which a photograph is shifted along each side."""


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each picture by whole pixels, and mirror every second; what comes in is reflected.

    Args:
        images: Pictures [B, 3, side, side].
        generator: Draws the shifts and which pictures are mirrored.

    Returns:
        The changed pictures.
    """
    count, _, height, width = images.shape
    down, right = torch.randint(2 * SHIFT + 1, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    wide = F.pad(images, (SHIFT,) * 4, mode="reflect")
    which = torch.arange(count)[:, None, None]
    # Indices around a slice put the channels last.
    chosen = wide[which, :, rows[:, :, None], columns[:, None, :]]
    return chosen.permute(0, 3, 1, 2).contiguous()
