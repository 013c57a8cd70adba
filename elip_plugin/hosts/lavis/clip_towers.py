"""The vision tower of LAVIS' own CLIP, whose tokens run sequence first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lavis.models.clip_models.model import (
    ResidualAttentionBlock,
    Transformer,
    VisualTransformer,
)
from torch import Tensor

from elip_plugin.config import ElipConfig
from elip_plugin.core.score import SCORE, attention_row
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.pruner import Pruner
from elip_plugin.patching.swap import Patched, choose, choose_all, swap
from elip_plugin.reducers import tome


class ElipClipBlock(Patched, ResidualAttentionBlock):
    """A block that the pruner can look through or ask for the class token's attention row.

    The pruner's tokens are [B, T, D], the block's own [T, B, D].
    """

    replaces = ResidualAttentionBlock

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, elip: str | None = None
    ) -> Tensor:
        """Run the block, look through it, or score tokens.

        Args:
            x: Tokens [T, B, D]; [B, T, D] where `elip` is given.
            attn_mask: As in LAVIS.
            elip: None runs the block, "look" too, but batch first; "score" gives the row.

        Returns:
            Tokens in the order of `x`, or attention [B, T].
        """
        if elip is None:
            return super().forward(x, attn_mask)
        if elip != SCORE:
            return super().forward(x.transpose(0, 1)).transpose(0, 1)
        z, attn = self.ln_1(x), self.attn
        return attention_row(z, z[:, :1], attn.in_proj_weight, attn.in_proj_bias, attn.num_heads)


class ElipClipTransformer(Patched, Transformer):
    """A stack of blocks that prunes between them."""

    replaces = Transformer

    if TYPE_CHECKING:
        elip: Pruner

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Run the blocks, with the stages of the plan if pruning is active.

        Args:
            x: Tokens [T, B, D], class token first.
            attn_mask: Must be None where tokens are pruned.

        Returns:
            Tokens [T', B, D].
        """
        pruner = self.elip
        if not pruner.active(self.training):
            return super().forward(x, attn_mask)
        plan = pruner.plan_for(len(x) - pruner.prefix, self.training)
        stages = {stage.block: stage for stage in plan.stages}
        for i, block in enumerate(self.resblocks):
            if i in stages:
                tokens = pruner.run(x.transpose(0, 1), stages[i], self.resblocks, self.training)
                x = tokens.transpose(0, 1)
            x = block(x)
        return x

    def extra_repr(self) -> str:
        """Show the plan where the model is printed."""
        return f"elip: {self.elip.plan.summary()}"


def patch_clip_tower(visual: Any, config: ElipConfig) -> Pruner:
    """Patch the vision tower of LAVIS' CLIP in place.

    Args:
        visual: A `lavis.models.clip_models.model.VisualTransformer`.
        config: What to prune.

    Returns:
        The tower's pruner.

    Raises:
        UnsupportedModelError: Before anything is changed.
        PlanError: Before anything is changed.
    """
    if type(visual) is not VisualTransformer:
        raise UnsupportedModelError(
            f"vision tower {type(visual).__name__} of LAVIS' CLIP cannot be pruned: only its own "
            "ViT is supported (model types ViT-B-32, ViT-B-16, ViT-L-14 and the like)"
        )
    tome.refuse(config, "LAVIS' vision towers")
    transformer = visual.transformer
    blocks = choose_all(transformer.resblocks, {ResidualAttentionBlock: ElipClipBlock})
    stack = choose(transformer, {Transformer: ElipClipTransformer})
    pruner = Pruner(
        config,
        num_patches=len(visual.positional_embedding) - 1,
        depth=len(transformer.resblocks),
        width=transformer.width,
    )
    for block, patched in blocks:
        swap(block, patched)
    swap(transformer, stack, elip=pruner)
    pruner.follow(visual.parameters())
    return pruner
