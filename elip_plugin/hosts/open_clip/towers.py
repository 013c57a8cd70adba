"""OpenCLIP's native vision tower: its blocks say their parts, its transformer prunes."""

from __future__ import annotations

from typing import Any

from open_clip.transformer import (
    Attention,
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
)
from torch import Tensor, nn

from elip_plugin.core.blocks import PackedAttention
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import (
    PrunableBlock,
    PrunableStack,
    PrunableTower,
    call_checkpointed,
)
from elip_plugin.patching.description import Tower, TowerShape
from elip_plugin.patching.swap import swap_for, swaps_for


class ElipResidualAttentionBlock(PrunableBlock, ResidualAttentionBlock):
    """OpenCLIP's usual block, with its parts; it has no dropout."""

    replaces = ResidualAttentionBlock

    def packed_attention(self) -> PackedAttention:
        """Return the attention's projections."""
        attn = self.attn
        return PackedAttention(self.ln_1, attn.in_proj_weight, attn.in_proj_bias, attn.num_heads)

    def attention_output(self, mixed: Tensor) -> Tensor:
        """Join the heads and project; see `BlockParts`."""
        return self.ls_1(self.attn.out_proj(mixed.transpose(1, 2).flatten(2)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Run the MLP; see `BlockParts`."""
        return self.ls_2(self.mlp(self.ln_2(x)))


class ElipCustomBlock(PrunableBlock, CustomResidualAttentionBlock):
    """OpenCLIP's custom block: normalized queries and keys, scaled heads."""

    replaces = CustomResidualAttentionBlock

    def forward(self, x: Tensor, *unused: None, elip: Any = None, **options: Any) -> Any:
        """Run the block, or a mode; see `PrunableBlock`."""
        return super().forward(x, elip=elip, **options)

    def packed_attention(self) -> PackedAttention:
        """Return the attention's projections."""
        attn = self.attn
        weight, bias = attn.in_proj_weight, attn.in_proj_bias
        return PackedAttention(self.ln_1, weight, bias, attn.num_heads, attn.ln_q, attn.ln_k)

    def attention_output(self, mixed: Tensor) -> Tensor:
        """Scale and join the heads, project; see `BlockParts`."""
        attn: Attention = self.attn
        if attn.head_scale is not None:
            mixed = mixed * attn.head_scale
        joined = mixed.transpose(1, 2).flatten(2)
        if hasattr(attn, "ln_inner"):  # from OpenCLIP 3 on
            joined = attn.ln_inner(joined)
        return self.ls_1(self.ln_attn(attn.out_proj(joined)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Run the MLP; see `BlockParts`."""
        return self.ls_2(self.mlp(self.ln_2(x)))


class ElipVisionTransformer(PrunableTower, VisionTransformer):
    """A tower that embeds patches and runs the stack."""

    replaces = VisionTransformer


class ElipTransformer(PrunableStack, Transformer):
    """A stack of blocks that prunes between them, outside any checkpointed region."""

    replaces = Transformer

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Run the blocks on tokens [B, T, D], with the plan's stages if pruning is active."""
        pruning = self.elip.current(self)
        if pruning is None:
            return super().forward(x, attn_mask)
        if attn_mask is not None:
            pruning.refuse_mask(attn_mask=attn_mask)
        call = call_checkpointed if self.grad_checkpointing else None
        return pruning.run_blocks(x, self.resblocks, call)


BLOCKS: dict[type, type[nn.Module]] = {
    ResidualAttentionBlock: ElipResidualAttentionBlock,
    CustomResidualAttentionBlock: ElipCustomBlock,
}


def describe(visual: Any) -> Tower:
    """Describe a native vision tower; see `Host.describe`."""
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
    transformer = visual.transformer
    if not getattr(transformer, "batch_first", True):  # OpenCLIP 4 has no other form
        raise UnsupportedModelError("a tower with sequence-first blocks: build it batch first")
    if any(getattr(block.attn, "scaled_cosine", False) for block in transformer.resblocks):
        raise UnsupportedModelError("scaled cosine attention is not supported: build it without")
    rows, columns = visual.grid_size
    shape = TowerShape(
        num_patches=rows * columns,
        depth=len(transformer.resblocks),
        width=transformer.width,
        # Average pooling leaves the class token out.
        class_query=visual.attn_pool is not None or visual.pool_type == "tok",
    )
    stack = swap_for(transformer, {Transformer: ElipTransformer})
    blocks = swaps_for(transformer.resblocks, BLOCKS)
    # All are patched: the host's own custom block refuses checkpointing, ours does not.
    custom = any(swap.patched is ElipCustomBlock for swap in blocks)
    return Tower(
        shape,
        stack,
        blocks,
        others=(swap_for(visual, {VisionTransformer: ElipVisionTransformer}),),
        random_blocks=custom,
        module=visual,
        patch_embed=visual.conv1,
        # Attentional pooling has it after the pooling, in another width.
        norm="ln_post" if visual.attn_pool is None else "",
    )
