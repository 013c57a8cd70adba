"""LAVIS' vision tower (ALBEF, BLIP): blocks with parts, a tower that prunes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lavis.models.vit import Attention, Block, VisionTransformer, VisionTransformerEncoder
from torch import Tensor, nn

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import PrunableStack, call_block
from elip_plugin.patching.description import Tower, TowerShape
from elip_plugin.patching.named import patched_class
from elip_plugin.patching.parts import PackedBlock, Parts
from elip_plugin.patching.swap import Patched, Swap, swap_for, swaps_for


class Fused:
    """As `register_hook`, which LAVIS' blocks hand to their attention: fuse it, and register none.

    An argument says so, and not what is true of the forward in progress: `vit_grad_ckpt` runs the
    attention again in the backward pass.
    """

    def __bool__(self) -> bool:
        return False


FUSED: Any = Fused()


class FusedAttention(Patched, Attention):
    """LAVIS' attention, fused where it is asked for: in pruned forwards."""

    replaces = Attention

    def forward(self, x: Tensor, register_hook: bool = False) -> Tensor:
        """Attend."""
        # By class: what `vit_grad_ckpt` wraps around this function stays when pruning is removed.
        if register_hook is not FUSED and (register_hook or not hasattr(self, "elip_always")):
            return Attention.forward(self, x, register_hook)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attn_drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


def fuse_attention(model: nn.Module) -> None:
    """Give all attention of a model's towers the fused form, in place, to compare with."""
    for module in list(model.modules()):
        if type(module) is Attention:
            Swap(module, FusedAttention, {"elip_always": True}).apply()


class HookedBlock(PackedBlock):
    """LAVIS' block, which is told whether to keep its attention map."""

    def forward(self, x: Tensor, *args: Any, elip: Any = None, **options: Any) -> Any:
        """Run LAVIS' forward, or a mode; see `PrunableBlock`."""
        if elip is not None:
            options.pop("register_hook", None)
            return elip(self, x, **options)
        return Block.forward(self, x, *args, **options)


PARTS = Parts(
    "norm1",
    ("attn.qkv.weight", "attn.qkv.bias"),
    "attn.num_heads",
    ("attn.proj",),
    "norm2",
    ("mlp.fc1", "mlp.act", "mlp.fc2"),  # without dropout
    stochastic_depth="drop_path",
)


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
            blocks = [partial(block, register_hook=FUSED) for block in self.blocks]
            call = None if register_blk < 0 else partial(_call_mapped, blocks[register_blk])
            return self.norm(pruning.run_blocks(self.pos_drop(tokens), blocks, call))


def _call_mapped(mapped: Any, block: Any, x: Tensor, mode: Any = None, **options: Any) -> Any:
    """Call a block; one that is `mapped` keeps its attention map."""
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
    patched = {Block: patched_class(HookedBlock, Block, PARTS)}
    blocks = swaps_for(tower.blocks, patched, elip_scale=tower.blocks[0].attn.scale)
    shape = TowerShape(tower.patch_embed.num_patches, len(tower.blocks), tower.embed_dim)
    still = all(
        isinstance(block.drop_path, nn.Identity)
        and block.attn.attn_drop.p == block.attn.proj_drop.p == block.mlp.drop.p == 0
        for block in tower.blocks
    )
    attention = swaps_for((block.attn for block in tower.blocks), {Attention: FusedAttention})
    return Tower(
        shape,
        swap_for(tower, TOWERS),
        blocks,
        attention,
        random_blocks=not still,
        patch_embed=tower.patch_embed.proj,
        norm="norm",
    )
