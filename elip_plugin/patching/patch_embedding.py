"""The patch embedding, for reducers that read the pixels of the patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.calls import find
from elip_plugin.patching.forward import Forward
from elip_plugin.patching.swap import Patched, Swap


class ElipPatchEmbedding(Patched, nn.Conv2d):
    """A convolution that embeds patches as the reducer of a pruned forward does."""

    replaces = nn.Conv2d

    if TYPE_CHECKING:
        kernel_size: tuple[int, int]

    def forward(self, input: Tensor) -> Tensor:
        """Embed images [B, C, height, width]."""
        forward = find(self.elip, Forward)
        if forward is None or forward.tower is None or not forward.level:
            return super().forward(input)
        reducer, host = self.elip.reducer, super().forward
        embedded: Tensor
        embedded, forward.patches = reducer.embed(host, input, self.kernel_size)
        return embedded


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
