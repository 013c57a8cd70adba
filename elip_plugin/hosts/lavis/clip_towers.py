"""The vision tower of LAVIS' own CLIP, whose tokens run sequence first."""

from __future__ import annotations

from typing import Any

from lavis.models.clip_models.model import (
    ResidualAttentionBlock,
    Transformer,
    VisualTransformer,
)
from torch import Tensor

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import PrunableStack, PrunableTower, call_block
from elip_plugin.patching.description import Tower, TowerShape
from elip_plugin.patching.parts import Parts, parts_block
from elip_plugin.patching.swap import swap_for, swaps_for

PARTS = Parts(
    "ln_1",
    ("attn.in_proj_weight", "attn.in_proj_bias"),
    "attn.num_heads",
    ("attn.out_proj",),
    "ln_2",
    ("mlp",),
)
"""Batch first in all modes; by itself a block is sequence first."""


class ElipClipTower(PrunableTower, VisualTransformer):
    """A tower that embeds patches and runs the stack."""

    replaces = VisualTransformer


class ElipClipTransformer(PrunableStack, Transformer):
    """A stack of blocks that prunes between them."""

    replaces = Transformer

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Run the blocks on tokens [T, B, D], with the plan's stages if pruning is active."""
        pruning = self.elip.current(self)
        if pruning is None:
            return super().forward(x, attn_mask)
        if attn_mask is not None:
            pruning.refuse_mask(attn_mask=attn_mask)
        return pruning.run_blocks(x.transpose(0, 1), self.resblocks, _call).transpose(0, 1)


def _call(block: Any, x: Tensor, mode: Any = None, **options: Any) -> Any:
    """Call a block with tokens [B, T, D]."""
    if mode is None:
        return block(x.transpose(0, 1)).transpose(0, 1)
    return call_block(block, x, mode, **options)


def describe(visual: Any) -> Tower:
    """Describe the vision tower of LAVIS' CLIP; see `Host.describe`."""
    if type(visual) is not VisualTransformer:
        raise UnsupportedModelError(
            f"vision tower {type(visual).__name__} of LAVIS' CLIP cannot be pruned: only its own "
            "ViT is supported (model types ViT-B-32, ViT-B-16, ViT-L-14 and the like)"
        )
    transformer = visual.transformer
    patches = visual.positional_embedding.shape[0] - 1
    shape = TowerShape(patches, len(transformer.resblocks), transformer.width)
    stack = swap_for(transformer, {Transformer: ElipClipTransformer})
    patched = {ResidualAttentionBlock: parts_block(ResidualAttentionBlock, PARTS)}
    blocks = swaps_for(transformer.resblocks, patched)
    # A block by itself takes tokens sequence first, so looking ahead needs the mode.
    return Tower(
        shape,
        stack,
        blocks,
        others=(swap_for(visual, {VisualTransformer: ElipClipTower}),),
        random_blocks=True,
        module=visual,
        patch_embed=visual.conv1,
        norm="ln_post",
    )
