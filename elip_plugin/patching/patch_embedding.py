"""The patch embedding, for reducers that read the pixels of the patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from elip_plugin.core.patches import split_patches
from elip_plugin.errors import PlanError, UnsupportedModelError
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
        """Embed images [B, C, height, width]; PlanError if the reducer cannot shrink the grid."""
        pruner = self.elip
        if not pruner.is_active(self.training):
            return super().forward(input)
        pruner.patches = split_patches(input.detach(), self.kernel_size)
        downscale = pruner.reducer.downscale
        if downscale == 1:
            return super().forward(input)
        rows, columns = pruner.patches.shape[2:4]
        if rows % downscale or columns % downscale:
            raise PlanError(
                f"reducer {pruner.reducer.name!r} makes one token of {downscale} x {downscale} "
                f"patches, which a grid of {rows} x {columns} has not: choose a resolution with "
                f"rows and columns that {downscale} divides"
            )
        # As many embeddings as the tower expects, so that what it adds to them fits.
        small = super().forward(F.avg_pool2d(input, downscale))
        return small.repeat_interleave(downscale, 2).repeat_interleave(downscale, 3)


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
