"""LAVIS' vision tower (ALBEF, BLIP): blocks with parts, a tower that prunes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lavis.models.vit import Attention, Block, VisionTransformer, VisionTransformerEncoder
from torch import Tensor, nn

from elip_plugin.core.blocks import PackedAttention
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import PrunableBlock, PrunableStack, call_block
from elip_plugin.patching.description import Tower, TowerShape
from elip_plugin.patching.swap import Patched, Swap, choose, choose_all


class FusedAttention(Patched, Attention):
    """LAVIS' attention, fused where it is asked for: in pruned forwards."""

    replaces = Attention

    def forward(self, x: Tensor, register_hook: bool = False, fused: bool = False) -> Tensor:
        """Attend."""
        # By class: what `vit_grad_ckpt` wraps around this function stays when pruning is removed.
        if register_hook or not (fused or getattr(self, "elip_always", False)):
            return Attention.forward(self, x, register_hook)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attn_drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


def fuse_attention(model: nn.Module) -> None:
    """Give all attention of a model's towers the fused form, in place, to compare with."""
    for module in list(model.modules()):
        if type(module) is Attention:
            Swap(module, FusedAttention, {"elip_always": True}).make()


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


def fused(block: Any, x: Tensor) -> Tensor:
    """Run a block with fused attention (a mode of patched blocks).

    An argument says so, and not what is true of the forward in progress: `vit_grad_ckpt` runs the
    attention again in the backward pass.
    """
    x = x + block.drop_path(block.attn(block.norm1(x), fused=True))
    y: Tensor = x + block.drop_path(block.mlp(block.norm2(x)))
    return y


class ElipVisionTransformer(PrunableStack, VisionTransformer):
    """A tower that prunes between its blocks; LAVIS' checkpointed regions are inside them."""

    replaces = VisionTransformer

    def forward(self, x: Tensor, register_blk: int = -1) -> Tensor:
        """Embed images [B, 3, height, width] and run the blocks, pruned if pruning is active."""
        with self.elip.begin(self) as pruning:
            if pruning is None:
                return VisionTransformer.forward(self, x, register_blk)
            class_token = self.cls_token.expand(x.shape[0], -1, -1)
            tokens = torch.cat([class_token, self.patch_embed(x)], dim=1) + self.pos_embed
            mapped = self.blocks[register_blk] if register_blk >= 0 else None
            call = partial(_call_fused, mapped)
            return self.norm(pruning.run_blocks(self.pos_drop(tokens), self.blocks, call))


def _call_fused(mapped: Any, block: Any, x: Tensor, mode: Any = None, **options: Any) -> Any:
    """Call a block with fused attention; one that is `mapped` keeps its attention map."""
    if block is mapped and mode is None:
        return block(x, register_hook=True)
    return call_block(block, x, fused if mode is None else mode, **options)


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
    attention = choose_all((block.attn for block in tower.blocks), {Attention: FusedAttention})
    return Tower(
        shape,
        choose(tower, TOWERS),
        blocks,
        attention,
        # All blocks have the mode `fused`; looking ahead may call one that has no dropout.
        random_blocks=not still,
        patch_embed=tower.patch_embed.proj,
        norm="norm",
    )
