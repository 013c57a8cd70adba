"""The patch embedding, for reducers that read the pixels of the patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from elip_plugin.core.patches import split_patches
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.swap import Patched, Swap

if TYPE_CHECKING:
    from elip_plugin.patching.pruner import Pruner


class ElipPatchEmbedding(Patched, nn.Conv2d):
    """A convolution that embeds patches, and gives their pixels to the pruner."""

    replaces = nn.Conv2d

    if TYPE_CHECKING:
        elip: Pruner
        kernel_size: tuple[int, int]

    def forward(self, input: Tensor) -> Tensor:
        """Embed images [B, C, height, width]."""
        pruner = self.elip
        if not pruner.is_active(self.training):
            return super().forward(input)
        pruner.patches = split_patches(input.detach(), self.kernel_size)
        downscale = pruner.reducer.downscale
        if downscale == 1:
            return super().forward(input)
        # As many embeddings as the tower expects, so that what it adds to them fits.
        rows, columns = pruner.patches.shape[2:4]
        small = super().forward(shrink(input, downscale, (rows, columns), self.kernel_size))
        repeated = small.repeat_interleave(downscale, 2).repeat_interleave(downscale, 3)
        return repeated[:, :, :rows, :columns]


def shrink(images: Tensor, downscale: int, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """Shrink pictures to whole patches, of which each stands for `downscale` per side.

    Args:
        images: Images [B, C, height, width].
        downscale: By how much the sides shrink; by a little less where it does not divide the grid.
        grid: Rows and columns of patches in the images.
        patch: Height and width of a patch in pixels.

    Returns:
        Images of ceil(rows / downscale) x ceil(columns / downscale) patches, or a few pixels more.
    """
    if not any(count % downscale for count in grid):
        return F.avg_pool2d(images, downscale)
    height, width = (-(-count // downscale) * side for count, side in zip(grid, patch))
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True)


def swap_patch_embedding(embedding: nn.Module | None, reducer: str) -> Swap:
    """Return the swap of a tower's patch embedding; changes nothing."""
    need = f"reducer {reducer!r} needs the pixels of the patches, but this tower "
    if embedding is None:
        raise UnsupportedModelError(
            f"{need}has no convolution that makes each token of one patch: use another reducer"
        )
    if type(embedding) is not nn.Conv2d:
        raise UnsupportedModelError(
            f"{need}embeds them by {type(embedding).__name__}; supported is torch's Conv2d "
            "(apply ELIP before wrapping or compiling a model)"
        )
    apart = embedding.stride == embedding.kernel_size and embedding.padding in ((0, 0), "valid")
    if not apart:
        raise UnsupportedModelError(
            f"{need}embeds patches of {embedding.kernel_size} pixels with stride "
            f"{embedding.stride} and padding {embedding.padding}: only patches side by side are "
            "supported"
        )
    return Swap(embedding, ElipPatchEmbedding)
