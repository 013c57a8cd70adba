"""timm's NaFlexVit (SigLIP 2 NaFlex): each image has its own number of patches.

A batch is padded to its longest image. Each image has the plan of its own number of patches, and a
mask keeps padding out of the attention; images [B, 3, height, width] have neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.eva import EvaBlock
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from elip_plugin.core.positions import PositionOptions, attention_mask
from elip_plugin.hosts.open_clip.eva_towers import ElipEvaBlock, refuse_other_parts, rotations
from elip_plugin.hosts.open_clip.timm_blocks import ElipTimmBlock, refuse_other_attention
from elip_plugin.hosts.open_clip.timm_trunk import (
    has_stochastic_depth,
    last_norm,
    refuse_dropout,
    shape_of,
)
from elip_plugin.patching.blocks import (
    PrunableBlock,
    PrunableStack,
    call_block,
    call_checkpointed,
)
from elip_plugin.patching.description import Tower
from elip_plugin.patching.swap import Swap, swaps_for


class Masked(PrunableBlock):
    """A block that is called with a mask [B, 1, 1, T] where some tokens are padding."""

    def query_and_keys(self, *tokens: Any, attn_mask: Any = None, **positions: Any) -> Any:
        """Normalize and project a query token and the tokens; see `BlockParts`."""
        return super().query_and_keys(*tokens, **positions)

    def queries_keys_values(self, *tokens: Any, attn_mask: Any = None, **positions: Any) -> Any:
        """Normalize and project tokens; see `BlockParts`."""
        return super().queries_keys_values(*tokens, **positions)

    def position_bias(self, **positions: Any) -> Tensor | None:
        """Return the mask; see `BlockParts`."""
        return positions.get("attn_mask")

    key_bias = position_bias


class ElipNaFlexBlock(Masked, ElipTimmBlock):
    """timm's block."""

    replaces = Block


class ElipNaFlexEvaBlock(Masked, ElipEvaBlock):
    """timm's EVA block (SwiGLU, rotary positions)."""

    replaces = EvaBlock


class ElipNaFlex(PrunableStack, NaFlexVit):
    """A trunk that prunes each image by its own number of patches."""

    replaces = NaFlexVit

    def forward_features(
        self,
        patches: Tensor,
        patch_coord: Tensor | None = None,
        patch_valid: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Any:
        """Embed images or patches and run the blocks, pruned if pruning is active."""
        with self.elip.begin(self) as pruning:
            if pruning is None:
                return super().forward_features(patches, patch_coord, patch_valid, attn_mask)
            pruning.refuse_mask(attn_mask=attn_mask)
            embedded = self._forward_embeds(patches, patch_coord, patch_valid, None)
            x, valid = embedded["patches"], embedded["patch_valid"]
            call = call_checkpointed if self.grad_checkpointing else call_block
            rope = embedded["rope_embeds"]
            rotary = None if rope is None else rotations(rope)
            positions = read_by_blocks(rotary, self.elip.shape.prefix, x.dtype)
            if valid is None:
                x = pruning.run_blocks(x, self.blocks, call, None if rope is None else positions)
            else:
                x, valid = pruning.run_padded_blocks(x, valid.bool(), self.blocks, call, positions)
            x = self.norm(x)
            return x if patch_coord is None else {"patches": x, "patch_valid": valid}


def read_by_blocks(
    rotary: PositionOptions | None, prefix: int, dtype: torch.dtype
) -> PositionOptions:
    """Return what blocks are called with: rotations, if there are any, and a mask of padding."""

    def options(index: Tensor | None, valid: Tensor | None) -> Mapping[str, Any]:
        given = {} if rotary is None else dict(rotary(index, valid))
        if valid is not None:
            given["attn_mask"] = attention_mask(valid, prefix, dtype)
        return given

    return options


BLOCKS: dict[type, type[nn.Module]] = {Block: ElipNaFlexBlock, EvaBlock: ElipNaFlexEvaBlock}


def describe(trunk: Any, num_patches: int) -> Tower:
    """Describe a NaFlexVit; see `Host.describe`."""
    blocks = swaps_for(trunk.blocks, BLOCKS, elip_scale=trunk.blocks[0].attn.scale)
    if type(trunk.blocks[0]) is EvaBlock:
        refuse_other_parts(trunk, trunk.rope_is_mixed)
    else:
        for block in trunk.blocks:
            refuse_other_attention(block)
            refuse_dropout(block.modules())
    return Tower(
        shape_of(trunk, num_patches, trunk.has_class_token),
        Swap(trunk, ElipNaFlex),
        blocks,
        random_blocks=has_stochastic_depth(trunk.blocks),
        norm=last_norm(trunk),
    )
