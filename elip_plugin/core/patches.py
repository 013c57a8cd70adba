"""The pixels of a picture's patches."""

from __future__ import annotations

from torch import Tensor


def split_patches(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Split pictures into the patches that a tower embeds.

    Args:
        images: Images [B, C, height, width].
        size: Height and width of a patch, in pixels; what does not fill one is left out.

    Returns:
        A view of the images [B, C, rows, columns, patch height, patch width].
    """
    return images.unfold(2, size[0], size[0]).unfold(3, size[1], size[1])
