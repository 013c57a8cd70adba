"""Reducers that read the pixels of the patches, once, at the tower's input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from elip_plugin.core.context import StageContext
from elip_plugin.errors import PlanError
from elip_plugin.reducers.base import Reducer


@dataclass(frozen=True)
class PixelReducer(Reducer):
    """A reducer whose one stage is at block 0 and which reads `StageContext.patches`."""

    uses_attention = False
    needs = ("patch_embed",)
    plan: ClassVar[Mapping[str, Any]] = {"stages": [{"block": 0, "lookahead": 1, "keep": 0.5}]}

    def config_faults(self, config: Any) -> list[str]:
        """Refuse stages elsewhere; see `Reducer.config_faults`."""
        faults = super().config_faults(config)
        blocks = [stage.block for stage in config.stages]
        if blocks != [0]:
            faults.append(
                f"reducer {self.name!r} has one stage, at block 0, got stages at blocks {blocks}: "
                "leave preset and stages out, or give that one"
            )
        return faults

    def embed(
        self, embedding: Callable[[Tensor], Tensor], images: Tensor, patch: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Embed the patches of a pruned forward.

        Args:
            embedding: The host's convolution.
            images: Images [B, C, height, width].
            patch: Height and width of a patch in pixels.

        Returns:
            Embeddings [B, D, rows, columns], and the pixels for `StageContext.patches`.
        """
        return embedding(images), split_patches(images.detach(), patch)

    def patches_of(self, x: Tensor, context: StageContext) -> Tensor:
        """Return the pixels of the patches that the tokens [B, P + N, D] were made of.

        Of the shape of `StageContext.patches`, rows * columns = N patches; a PlanError if there are
        none, or not those of the tokens.
        """
        patches, present = context.patches, x.shape[1] - context.prefix
        if patches is None:
            raise PlanError(
                f"reducer {self.name!r} needs the pixels of the patches, but this forward "
                "did not pass the patch embedding that was there when ELIP was applied: run the "
                "tower on images, and apply ELIP anew after changing its patch size"
            )
        rows, columns = patches.shape[2:4]
        if rows * columns != present:
            raise PlanError(
                f"reducer {self.name!r} needs a token for each patch, but {present} of "
                f"{rows} x {columns} are left: build the model without patch dropout"
            )
        return patches


def split_patches(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Split images [B, C, height, width] into the patches of `size` pixels that a tower embeds.

    Returns a view [B, C, rows, columns, patch height, patch width]; what fills no patch is left
    out.
    """
    return images.unfold(2, size[0], size[0]).unfold(3, size[1], size[1])
