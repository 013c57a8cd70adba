"""timm's block, which several of its trunks have."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from elip_plugin.core.blocks import PackedAttention
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import PrunableBlock


class ElipTimmBlock(PrunableBlock, Block):
    """timm's block, with its parts; dropout is refused, stochastic depth may be there."""

    replaces = Block

    def packed_attention(self) -> PackedAttention:
        """Return the attention's projections."""
        attn = self.attn
        qkv, norms = attn.qkv, (attn.q_norm, attn.k_norm)
        return PackedAttention(self.norm1, qkv.weight, qkv.bias, attn.num_heads, *norms)

    def attention_output(self, mixed: Tensor) -> Tensor:
        """Join the heads and project; see `BlockParts`."""
        joined = getattr(self.attn, "norm", nn.Identity())(mixed.transpose(1, 2).flatten(2))
        return self.ls1(self.attn.proj(joined))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Run the MLP; see `BlockParts`."""
        return self.ls2(self.mlp(self.norm2(x)))

    def stochastic_depth(self, added: Tensor) -> Tensor:
        """Apply stochastic depth; see `BlockParts`."""
        return self.drop_path1(added)


def refuse_other_attention(block: Any) -> None:
    """Refuse a block whose attention is not timm's plain one."""
    if type(block.attn) is not Attention:
        raise UnsupportedModelError(
            f"attention {type(block.attn).__name__} is not supported: timm's Attention is"
        )
