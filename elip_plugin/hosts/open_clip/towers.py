"""OpenCLIP's native vision tower: its blocks say their parts, its transformer prunes."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from typing import Any

from open_clip.transformer import (
    Attention,
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
)
from torch import Tensor, nn

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import PrunableStack, PrunableTower, call_checkpointed
from elip_plugin.patching.description import Tower, TowerShape
from elip_plugin.patching.named import patched_class
from elip_plugin.patching.parts import PackedBlock, Parts, parts_block
from elip_plugin.patching.swap import swap_for, swaps_for

PARTS = Parts(
    "ln_1",
    ("attn.in_proj_weight", "attn.in_proj_bias"),
    "attn.num_heads",
    ("attn.out_proj", "ls_1"),
    "ln_2",
    ("mlp", "ls_2"),
)


class CustomBlock(PackedBlock):
    """OpenCLIP's custom block: normalized queries and keys, scaled heads."""

    def forward(self, x: Tensor, *unused: None, elip: Any = None, **options: Any) -> Any:
        """Run the block, or a mode; see `PrunableBlock`."""
        return super().forward(x, elip=elip, **options)

    def attention_output(self, mixed: Tensor) -> Tensor:
        """Scale and join the heads, project; see `BlockParts`."""
        scale = self.attn.head_scale
        return super().attention_output(mixed if scale is None else mixed * scale)


INNER = ("attn.ln_inner",) if "inner_norm" in signature(Attention).parameters else ()
"""From OpenCLIP 3 on."""

CUSTOM_PARTS = replace(
    PARTS,
    output=(*INNER, "attn.out_proj", "ln_attn", "ls_1"),
    query_norm="attn.ln_q",
    key_norm="attn.ln_k",
)


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
    ResidualAttentionBlock: parts_block(ResidualAttentionBlock, PARTS),
    CustomResidualAttentionBlock: patched_class(
        CustomBlock, CustomResidualAttentionBlock, CUSTOM_PARTS
    ),
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
    custom = any(issubclass(swap.patched, CustomBlock) for swap in blocks)
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
