"""timm's VisionTransformerRelPos: an attention bias by relative positions, shared or per block.

Of a bias [1, H, P + N, P + N], the rows and columns of the tokens' positions are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import RelPosMlp
from timm.models.vision_transformer_relpos import RelPosBlock, VisionTransformerRelPos
from torch import Tensor

from elip_plugin.core.positions import PositionOptions
from elip_plugin.hosts.open_clip.timm_blocks import ElipTimmBlock
from elip_plugin.hosts.open_clip.timm_trunk import (
    PrunableTrunk,
    has_stochastic_depth,
    last_norm,
    patch_convolution,
    refuse_dropout,
    shape_of,
)
from elip_plugin.patching.blocks import PrunableBlock
from elip_plugin.patching.description import Tower
from elip_plugin.patching.swap import Swap, swaps_for


class ElipRelPosBlock(PrunableBlock, RelPosBlock):
    """timm's block with a relative position bias of its own or of the trunk's."""

    replaces = RelPosBlock

    def forward(
        self, x: Tensor, *args: Any, elip: Any = None, places: Tensor | None = None, **options: Any
    ) -> Any:
        """Run the block for tokens at places [B, T - P], or a mode; see `PrunableBlock`."""
        if elip is not None:
            return elip(self, x, places=places, **options)
        if places is None:
            return super().forward(x, *args, **options)
        q, k, v = self.queries_keys_values(x)
        bias = self.position_bias(places=places)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.drop_path1(self.attention_output(mixed))
        return x + self.drop_path2(self.feed_forward(x))

    def query_and_keys(self, query: Tensor, x: Tensor, **positions: Any) -> tuple[Tensor, Tensor]:
        """Normalize and project a query token and the tokens; see `BlockParts`."""
        return super().query_and_keys(query, x)

    def queries_keys_values(self, x: Tensor, **positions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize and project tokens; see `BlockParts`."""
        return super().queries_keys_values(x)

    def position_bias(self, **positions: Any) -> Tensor | None:
        """Compute the bias of the attention's logits; see `BlockParts`."""
        own, places = self.attn.rel_pos, positions["places"]
        if own is None:
            return positions["shared_rel_pos"]
        # Tokens are chosen without gradient, and without the dropout that this bias may have.
        drawn = torch.is_grad_enabled() or not isinstance(own, RelPosMlp)
        bias = own.get_bias() if drawn else bias_without_dropout(own)
        return bias if places is None else take_bias(bias, places, own.prefix_tokens)

    packed_attention = ElipTimmBlock.packed_attention
    attention_output = ElipTimmBlock.attention_output
    feed_forward = ElipTimmBlock.feed_forward
    stochastic_depth = ElipTimmBlock.stochastic_depth


class ElipRelPosTrunk(PrunableTrunk, VisionTransformerRelPos):
    """A trunk whose relative positions follow the tokens."""

    replaces = VisionTransformerRelPos

    def embed(self, x: Tensor) -> tuple[Tensor, PositionOptions | None]:
        """Return the tokens that enter the first block, and their biases."""
        tokens = self.patch_embed(x)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        if self.shared_rel_pos is None:
            return tokens, lambda index, _: {"places": index}
        return tokens, shared(self.shared_rel_pos.get_bias(), self.num_prefix_tokens)


def shared(bias: Tensor, prefix: int) -> PositionOptions:
    """Return what blocks are called with, for a bias that all share."""

    def options(index: Tensor | None, valid: Tensor | None) -> Mapping[str, Any]:
        taken = bias if index is None else take_bias(bias, index, prefix)
        return {"shared_rel_pos": taken}

    return options


def take_bias(bias: Tensor, places: Tensor, prefix: int) -> Tensor:
    """Take the rows and columns of the prefix and of the patches at places [B, T - P].

    Turns the bias for all tokens [1, H, P + N, P + N] into [B, H, T, T].
    """
    first = torch.arange(prefix, device=places.device).expand(len(places), -1)
    index = torch.cat([first, places + prefix], dim=1)
    return bias[0][:, index.unsqueeze(2), index.unsqueeze(1)].transpose(0, 1)


def bias_without_dropout(rel_pos: Any) -> Tensor:
    """Compute a `RelPosMlp`'s bias as in evaluation."""
    mlp, prefix = rel_pos.mlp, rel_pos.prefix_tokens
    offsets = mlp.fc2(mlp.norm(mlp.act(mlp.fc1(rel_pos.rel_coords_log))))
    table = rel_pos.bias_act(offsets.view(-1, rel_pos.num_heads))
    table = table if rel_pos.bias_gain is None else rel_pos.bias_gain * table
    bias = table[rel_pos.relative_position_index].view(rel_pos.bias_shape).permute(2, 0, 1)
    return F.pad(bias, [prefix, 0, prefix, 0]).unsqueeze(0)


def describe(trunk: Any, num_patches: int) -> Tower:
    """Describe a trunk with relative positions; see `Host.describe`."""
    blocks = swaps_for(trunk.blocks, {RelPosBlock: ElipRelPosBlock})
    for block in trunk.blocks:
        own = set() if block.attn.rel_pos is None else set(block.attn.rel_pos.modules())
        refuse_dropout(module for module in block.modules() if module not in own)
    return Tower(
        shape_of(trunk, num_patches, trunk.cls_token is not None),
        Swap(trunk, ElipRelPosTrunk),
        blocks,
        # The host's own block cannot take rows and columns of its own bias: all are patched.
        random_blocks=trunk.shared_rel_pos is None or has_stochastic_depth(trunk.blocks),
        patch_embed=patch_convolution(trunk),
        norm=last_norm(trunk),
    )
