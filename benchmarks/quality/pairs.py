"""The emojis in memory, and how they are changed in training."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.board.pairs import Pairs
from benchmarks.data.emojis import read_emojis

SCALE, ANGLE, SHIFT = (0.8, 1.05), 0.2, 0.1
"""Ranges of the changes in training: of the size, in radians, and in shares of half a side."""


def read_pairs(folder: Path, split: str, styles: str = "", most: int | None = None) -> Pairs:
    """Read a split that `benchmarks.data emojis` wrote.

    Args:
        folder: Where it was written.
        split: "train" or "held_out".
        styles: Sets to read, joined by commas; "" for all.
        most: Most pairs to read.

    Returns:
        The pairs.
    """
    emojis = read_emojis(folder, split)
    wanted = styles.split(",") if styles else emojis.styles
    rows = [row for row, style in enumerate(emojis.styles) if style in set(wanted)][:most]
    pictures = torch.from_numpy(emojis.pictures)[rows].permute(0, 3, 1, 2).contiguous()
    return Pairs(pictures, [emojis.captions[row] for row in rows], move)


def move(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change each picture's size, angle and place at random; what comes in is white.

    Args:
        images: Pictures [B, 3, side, side], from -1 to 1.
        generator: Draws the changes.

    Returns:
        The changed pictures.
    """
    drawn = torch.rand(4, len(images), generator=generator)
    scale = SCALE[0] + (SCALE[1] - SCALE[0]) * drawn[0]
    angle, (right, down) = ANGLE * (2 * drawn[1] - 1), SHIFT * (2 * drawn[2:] - 1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrices = torch.stack([cos, -sin, right, sin, cos, down], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images - 1, grid, align_corners=False) + 1  # outside is 0: white
