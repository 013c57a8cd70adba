"""OpenCLIP's native vision tower: its blocks learn to score, its transformer to prune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from open_clip.transformer import (
    Attention,
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elip_plugin.config import ElipConfig
from elip_plugin.core.score import SCORE, class_attention
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.pruner import Pruner
from elip_plugin.surgery import Patched, choose, swap


class ElipResidualAttentionBlock(Patched, ResidualAttentionBlock):
    """A block that can also be asked for the class token's attention row."""

    replaces = ResidualAttentionBlock

    def forward(
        self,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
        elip: str | None = None,
    ) -> Tensor:
        """Run the block, or score tokens.

        Args:
            q_x: Tokens [B, T, D].
            k_x: As in OpenCLIP.
            v_x: As in OpenCLIP.
            attn_mask: As in OpenCLIP.
            elip: None or "look" runs the block (it has no dropout); "score" gives the row.

        Returns:
            Tokens [B, T, D], or attention [B, T].
        """
        if elip != SCORE:
            return super().forward(q_x, k_x, v_x, attn_mask)
        return _class_row(self.ln_1(q_x), self.attn)


class ElipCustomBlock(Patched, CustomResidualAttentionBlock):
    """The same for OpenCLIP's custom block (normalised queries and keys, scaled heads)."""

    replaces = CustomResidualAttentionBlock

    def forward(
        self, x: Tensor, *unused: None, attn_mask: Tensor | None = None, elip: str | None = None
    ) -> Tensor:
        """Run the block, or score tokens.

        Args:
            x: Tokens [B, T, D].
            *unused: The empty places that `Transformer.forward` passes when checkpointing.
            attn_mask: As in OpenCLIP.
            elip: None or "look" runs the block; "score" gives the row.

        Returns:
            Tokens [B, T, D], or attention [B, T].
        """
        if elip != SCORE:
            return super().forward(x, attn_mask=attn_mask)
        return _class_row(self.ln_1(x), self.attn)


def _class_row(z: Tensor, attn: Any) -> Tensor:
    """Class token's attention row [B, T] from normalised tokens [B, T, D]."""
    width = z.shape[-1]
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    query_bias, key_bias = (None, None) if bias is None else (bias[:width], bias[width : 2 * width])
    query = _heads(F.linear(z[:, :1], weight[:width], query_bias), attn.num_heads)
    keys = _heads(F.linear(z, weight[width : 2 * width], key_bias), attn.num_heads)
    if isinstance(attn, Attention):  # the custom block's, which may normalise both
        query, keys = attn.ln_q(query), attn.ln_k(keys)
    return class_attention(query[:, :, 0], keys, query.shape[-1] ** -0.5)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [B, T, D] -> [B, H, T, D / H]


class ElipTransformer(Patched, Transformer):
    """A stack of blocks that prunes between them, outside any checkpointed region."""

    replaces = Transformer

    if TYPE_CHECKING:
        elip: Pruner

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Run the blocks, with the stages of the plan if pruning is active.

        Args:
            x: Tokens [B, T, D], class token first.
            attn_mask: Must be None where tokens are pruned.

        Returns:
            Tokens [B, T', D].
        """
        if not self.elip.active(self.training):
            return super().forward(x, attn_mask)
        plan = self.elip.plan_for(x.shape[1] - self.elip.plan.prefix)
        stages = {stage.block: stage for stage in plan.stages}
        for i, block in enumerate(self.resblocks):
            if i in stages:
                x = self.elip.run(x, stages[i], self.resblocks, self.training)
            x = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing else block(x)
        return x

    def extra_repr(self) -> str:
        """Show the plan where the model is printed."""
        return f"elip: {self.elip.plan.summary()}"


BLOCKS: dict[type, type[nn.Module]] = {
    ResidualAttentionBlock: ElipResidualAttentionBlock,
    CustomResidualAttentionBlock: ElipCustomBlock,
}


def check_tower(visual: nn.Module) -> None:
    """Refuse a vision tower whose tokens cannot be pruned by a class token's attention.

    Args:
        visual: The vision tower of an OpenCLIP model.

    Raises:
        UnsupportedModelError: Says why, and what is supported.
    """
    supported = "OpenCLIP's native VisionTransformer with class-token pooling is supported"
    if type(visual) is not VisionTransformer:
        raise UnsupportedModelError(f"vision tower {type(visual).__name__}: only {supported}")
    if visual.attn_pool is not None or visual.pool_type != "tok":
        pooling = "attentional" if visual.attn_pool is not None else visual.pool_type
        raise UnsupportedModelError(f"a tower with {pooling} pooling: only {supported}")
    if not visual.transformer.batch_first:
        raise UnsupportedModelError("a tower with sequence-first blocks: build it batch first")


def patch_tower(visual: Any, config: ElipConfig) -> Pruner:
    """Patch a native vision tower in place.

    Args:
        visual: An `open_clip.transformer.VisionTransformer`.
        config: What to prune.

    Returns:
        The tower's pruner.

    Raises:
        UnsupportedModelError: Before anything is changed.
        PlanError: Before anything is changed.
    """
    check_tower(visual)
    transformer = visual.transformer
    rows, columns = visual.grid_size
    blocks = [(block, choose(block, BLOCKS)) for block in transformer.resblocks]
    stack = choose(transformer, {Transformer: ElipTransformer})
    pruner = Pruner(
        config,
        num_patches=rows * columns,
        depth=len(transformer.resblocks),
        width=transformer.width,
    )
    for block, patched in blocks:
        swap(block, patched)
    swap(transformer, stack, elip=pruner)
    return pruner


def guide_from_text(features: Tensor, projection: Tensor) -> Tensor:
    """Turn text features into a guide for the tower (paper, section 3.3).

    Args:
        features: Text features [B, E], of any norm.
        projection: The visual projection [D, E].

    Returns:
        L2-normalised features times the transposed projection [B, D], detached.
    """
    with torch.no_grad():
        return F.normalize(features.detach(), dim=-1).to(projection.dtype) @ projection.t()
