"""LAVIS' vision tower (ALBEF, BLIP): blocks with parts, a tower that prunes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lavis.models.vit import Attention, Block, VisionTransformer, VisionTransformerEncoder
from torch import Tensor, nn

from elip_plugin.core.blocks import PackedAttention
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import PrunableBlock, PrunableStack, call_block
from elip_plugin.patching.install import Tower
from elip_plugin.patching.pruner import TowerShape
from elip_plugin.patching.swap import Patched, Swap, choose, choose_all


class Fused:
    """Whether the attention of a tower is fused: while its last forward was a pruned one."""

    def __init__(self, on: bool = False) -> None:
        self.on = on


UNFUSED = Fused()


class FusedAttention(Patched, Attention):
    """LAVIS' attention, fused: in pruned forwards, and in the reference to compare them with."""

    replaces = Attention

    if TYPE_CHECKING:
        elip_fused: Fused

    def forward(self, x: Tensor, register_hook: bool = False) -> Tensor:
        """Attend."""
        # By class and with a default: what `vit_grad_ckpt` wraps around this function stays when
        # pruning is removed.
        if register_hook or not getattr(self, "elip_fused", UNFUSED).on:
            return Attention.forward(self, x, register_hook)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attn_drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


def fuse_attention(model: nn.Module) -> None:
    """Give all attention of a model's towers the fused form, in place."""
    for module in list(model.modules()):
        if type(module) is Attention:
            Swap(module, FusedAttention, {"elip_fused": Fused(on=True)}).make()


class ElipBlock(PrunableBlock, Block):
    """LAVIS' block, with its parts."""

    replaces = Block

    def packed_attention(self) -> PackedAttention:
        """Return the attention's projections."""
        attn = self.attn
        return PackedAttention(self.norm1, attn.qkv.weight, attn.qkv.bias, attn.num_heads)

    def attention_output(self, mixed: Tensor) -> Tensor:
        """Join the heads and project; see `BlockParts`."""
        return self.attn.proj(mixed.transpose(1, 2).flatten(2))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Run the MLP without dropout; see `BlockParts`."""
        return self.mlp.fc2(self.mlp.act(self.mlp.fc1(self.norm2(x))))

    def stochastic_depth(self, added: Tensor) -> Tensor:
        """Apply stochastic depth; see `BlockParts`."""
        return self.drop_path(added)


class ElipVisionTransformer(PrunableStack, VisionTransformer):
    """A tower that prunes between its blocks; LAVIS' checkpointed regions are inside them."""

    replaces = VisionTransformer

    if TYPE_CHECKING:
        elip_fused: Fused

    def forward(self, x: Tensor, register_blk: int = -1) -> Tensor:
        """Embed images [B, 3, height, width] and run the blocks, pruned if pruning is active."""
        pruning = self.elip.begin(self.patch_embed.num_patches, self.training)
        # Left as it is at the end: `vit_grad_ckpt` runs the attention anew in the backward pass.
        self.elip_fused.on = pruning is not None
        if pruning is None:
            return VisionTransformer.forward(self, x, register_blk)
        class_token = self.cls_token.expand(len(x), -1, -1)
        tokens = torch.cat([class_token, self.patch_embed(x)], dim=1) + self.pos_embed
        call = None if register_blk < 0 else partial(_call_mapped, self.blocks[register_blk])
        return self.norm(pruning.run_blocks(self.pos_drop(tokens), self.blocks, call))


def _call_mapped(mapped: Any, block: Any, x: Tensor, mode: Any = None, **options: Any) -> Any:
    """Call a block, which keeps its attention map if it is `mapped`."""
    if block is mapped and mode is None:
        return block(x, register_hook=True)
    return call_block(block, x, mode, **options)


class ElipVisionTransformerEncoder(ElipVisionTransformer, VisionTransformerEncoder):
    """The same for the class that LAVIS' models build, whose features come by another method."""

    replaces = VisionTransformerEncoder

    forward_features = ElipVisionTransformer.forward


TOWERS: dict[type, type[nn.Module]] = {
    VisionTransformer: ElipVisionTransformer,
    VisionTransformerEncoder: ElipVisionTransformerEncoder,
}


def describe(tower: Any) -> Tower:
    """Describe a vision tower of ALBEF or BLIP; see `Host.describe`."""
    if not isinstance(tower, VisionTransformer):
        raise UnsupportedModelError(
            f"{type(tower).__name__}: only LAVIS' VisionTransformer is supported; pass the "
            "model's visual_encoder"
        )
    blocks = choose_all(tower.blocks, {Block: ElipBlock}, elip_scale=tower.blocks[0].attn.scale)
    shape = TowerShape(tower.patch_embed.num_patches, len(tower.blocks), tower.embed_dim)
    still = all(
        isinstance(block.drop_path, nn.Identity)
        and block.attn.attn_drop.p == block.attn.proj_drop.p == block.mlp.drop.p == 0
        for block in tower.blocks
    )
    fused = Fused()
    stack = choose(tower, TOWERS, elip_fused=fused)
    attention = choose_all(
        (block.attn for block in tower.blocks), {Attention: FusedAttention}, elip_fused=fused
    )
    return Tower(
        shape,
        stack,
        blocks,
        attention,
        random_blocks=not still,
        patch_embed=tower.patch_embed.proj,
        norm=tower.norm,
    )
