"""OpenCLIP's native vision tower: its blocks learn to score, its transformer to prune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from open_clip.transformer import (
    Attention,
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
    Transformer,
)
from torch import Tensor, nn

from elip_plugin.config import ElipConfig
from elip_plugin.core.score import SCORE, attention_row
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.pruner import Pruner
from elip_plugin.patching.swap import Patched, choose, choose_all, swap
from elip_plugin.reducers import tome


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
        query: Tensor | None = None,
        sizes: Tensor | None = None,
        remove: int = 0,
    ) -> Any:
        """Run the block, score tokens, or merge similar ones.

        Args:
            q_x: Tokens [B, T, D].
            k_x: As in OpenCLIP.
            v_x: As in OpenCLIP.
            attn_mask: As in OpenCLIP.
            elip: None or "look" runs the block (it has no dropout); "score" gives the row;
                "merge" is ToMe's block.
            query: For "score", the token that asks, [B, 1, D]; None for the class token.
            sizes: For "merge", how many patches each token stands for [B, T].
            remove: For "merge", how many tokens go.

        Returns:
            Tokens [B, T, D], or attention [B, T], or merged tokens and their sizes.
        """
        if elip == tome.MERGE and sizes is not None:
            return _merge(self, q_x, sizes, remove)
        if elip != SCORE:
            return super().forward(q_x, k_x, v_x, attn_mask)
        z = self.ln_1(q_x)
        return _row(z, z[:, :1] if query is None else self.ln_1(query), self.attn)


class ElipCustomBlock(Patched, CustomResidualAttentionBlock):
    """The same for OpenCLIP's custom block (normalised queries and keys, scaled heads)."""

    replaces = CustomResidualAttentionBlock

    def forward(
        self,
        x: Tensor,
        *unused: None,
        attn_mask: Tensor | None = None,
        elip: str | None = None,
        query: Tensor | None = None,
    ) -> Tensor:
        """Run the block, or score tokens.

        Args:
            x: Tokens [B, T, D].
            *unused: The empty places that `Transformer.forward` passes when checkpointing.
            attn_mask: As in OpenCLIP.
            elip: None or "look" runs the block; "score" gives the row.
            query: The token that asks, [B, 1, D]; None for the class token.

        Returns:
            Tokens [B, T, D], or attention [B, T].
        """
        if elip != SCORE:
            return super().forward(x, attn_mask=attn_mask)
        z = self.ln_1(x)
        return _row(z, z[:, :1] if query is None else self.ln_1(query), self.attn)


def _merge(block: Any, x: Tensor, sizes: Tensor, remove: int) -> tuple[Tensor, Tensor]:
    """ToMe's block: attention in proportion to sizes, merging, MLP."""
    attn = block.attn
    packed = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = packed.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = attn.out_proj(tome.attend(q, k, v, sizes).transpose(1, 2).flatten(2))
    x, sizes = tome.merging(k.mean(dim=1), sizes, remove)(x + block.ls_1(mixed))
    return x + block.ls_2(block.mlp(block.ln_2(x))), sizes


def _row(z: Tensor, query: Tensor, attn: Any) -> Tensor:
    # The custom block's attention may normalise queries and keys; both pack the same way.
    norms = (attn.ln_q, attn.ln_k) if isinstance(attn, Attention) else None
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    return attention_row(z, query, weight, bias, attn.num_heads, norms=norms)


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
        return self.elip.run_blocks(x, self.resblocks, self.training, self.grad_checkpointing)

    def extra_repr(self) -> str:
        """Show the plan where the model is printed."""
        return f"elip: {self.elip.plan.summary()}"


BLOCKS: dict[type, type[nn.Module]] = {
    ResidualAttentionBlock: ElipResidualAttentionBlock,
    CustomResidualAttentionBlock: ElipCustomBlock,
}


def check(visual: Any) -> None:
    """Check that this tower can be pruned.

    Args:
        visual: An `open_clip.transformer.VisionTransformer`.

    Raises:
        UnsupportedModelError: If it cannot, with the reason.
    """
    if visual.attn_pool is not None and visual.attn_pool_contrastive is not None:
        raise UnsupportedModelError(
            f"attentional pooling {visual.attn_pool_type!r}, with two poolers in a row or side by "
            "side, is not supported; attentional_pool: true, class-token and average pooling are"
        )
    if visual.pool_type not in ("tok", "avg"):
        raise UnsupportedModelError(
            f"pool_type {visual.pool_type!r} is not supported: it gives no image feature to guide; "
            "'tok' and 'avg' are"
        )
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
    check(visual)
    transformer = visual.transformer
    rows, columns = visual.grid_size
    blocks = choose_all(transformer.resblocks, BLOCKS)
    if any(patched is not ElipResidualAttentionBlock for _, patched in blocks):
        tome.refuse(config, "OpenCLIP's custom blocks")
    stack = choose(transformer, {Transformer: ElipTransformer})
    pruner = Pruner(
        config,
        num_patches=rows * columns,
        depth=len(transformer.resblocks),
        width=transformer.width,
        # Average pooling leaves the class token out.
        class_query=visual.attn_pool is not None or visual.pool_type == "tok",
    )
    for block, patched in blocks:
        swap(block, patched)
    swap(transformer, stack, elip=pruner)
    pruner.follow(visual.parameters())
    return pruner
