"""LAVIS' EVA ViT-g, the vision tower of BLIP-2 and InstructBLIP, which is mostly frozen."""

from __future__ import annotations

from typing import Any

import torch
from lavis.models.eva_vit import Block, VisionTransformer
from torch import Tensor, nn

from elip_plugin.core.blocks import PackedAttention
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.blocks import PrunableStack, call_block, call_checkpointed
from elip_plugin.patching.description import Tower, TowerShape
from elip_plugin.patching.named import patched_class
from elip_plugin.patching.parts import PackedBlock, Parts
from elip_plugin.patching.swap import Swap, swaps_for


class EvaBlock(PackedBlock):
    """LAVIS' EVA block, whose keys have no bias."""

    def packed_attention(self) -> PackedAttention:
        """Return the attention's projections; see `PrunableBlock`."""
        attn, bias = self.attn, None
        if attn.q_bias is not None:
            bias = torch.cat([attn.q_bias, torch.zeros_like(attn.v_bias), attn.v_bias])
        return PackedAttention(self.norm1, attn.qkv.weight, bias, attn.num_heads)


PARTS = Parts(
    "norm1",
    (),
    "attn.num_heads",
    ("attn.proj", "gamma_1"),
    "norm2",
    ("mlp", "gamma_2"),
    stochastic_depth="drop_path",
)


class ElipEvaTower(PrunableStack, VisionTransformer):
    """A tower that prunes between its blocks, outside any checkpointed region."""

    replaces = VisionTransformer

    def forward_features(self, x: Tensor) -> Tensor:
        """Embed images [B, 3, height, width] and run the blocks, pruned if pruning is active."""
        with self.elip.begin(self) as pruning:
            if pruning is None:
                return super().forward_features(x)
            class_token = self.cls_token.expand(x.shape[0], -1, -1)
            tokens = torch.cat([class_token, self.patch_embed(x)], dim=1)
            if self.pos_embed is not None:
                tokens = tokens + self.pos_embed
            call = call_checkpointed if self.use_checkpoint else call_block
            return pruning.run_blocks(self.pos_drop(tokens), self.blocks, call)


def describe(tower: Any) -> Tower:
    """Describe an EVA tower; see `Host.describe`."""
    if tower.rel_pos_bias is not None or tower.use_rel_pos_bias:
        raise UnsupportedModelError(
            "LAVIS' EVA tower with relative positions is not supported: ViT-g has absolute ones"
        )
    dropouts = [m.p for m in tower.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    if dropouts:
        raise UnsupportedModelError(
            f"LAVIS' EVA tower with dropout {dropouts[0]:g}: choosing tokens must be "
            "deterministic; build it without (drop_path_rate may stay)"
        )
    patched = {Block: patched_class(EvaBlock, Block, PARTS)}
    patches, frozen = tower.patch_embed, not any(p.requires_grad for p in tower.parameters())
    return Tower(
        TowerShape(patches.num_patches, len(tower.blocks), tower.embed_dim, frozen=frozen),
        Swap(tower, ElipEvaTower),
        swaps_for(tower.blocks, patched, elip_scale=tower.blocks[0].attn.scale),
        random_blocks=any(not isinstance(b.drop_path, nn.Identity) for b in tower.blocks),
        patch_embed=patches.proj,
    )
