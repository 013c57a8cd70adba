"""The pixels of a picture's patches."""

from __future__ import annotations

from torch import Tensor


def split_patches(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Split images [B, C, height, width] into the patches of `size` pixels that a tower embeds.

    Returns a view [B, C, rows, columns, patch height, patch width]; what fills no patch is left
    out.
    """
    return images.unfold(2, size[0], size[0]).unfold(3, size[1], size[1])
