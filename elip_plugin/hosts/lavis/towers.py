"""LAVIS' vision towers: of ALBEF and BLIP, and of its own CLIP."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lavis.models.clip_models import model as clip
from lavis.models.vit import Attention, Block, VisionTransformer
from torch import Tensor, nn

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.calls import thread
from elip_plugin.patching.description import Tower
from elip_plugin.patching.named import NamedAsReplaced, patched_class
from elip_plugin.patching.parts import PackedBlock, Parts
from elip_plugin.patching.runner import Calling
from elip_plugin.patching.swap import Swap

FUSED: Any = ""
"""As `register_hook`, which LAVIS' blocks hand to their attention: fuse it, and register none.

An argument says so, and not what is true of the forward in progress: `vit_grad_ckpt` runs the
attention again in the backward pass."""


class FusedAttention(NamedAsReplaced):
    """LAVIS' attention, fused where it is asked for: in pruned forwards."""

    def forward(self, x: Tensor, register_hook: Any = False) -> Tensor:
        """Attend."""
        # By class: what `vit_grad_ckpt` wraps around this function stays when pruning is removed.
        if register_hook != FUSED and (register_hook or not hasattr(self, "elip_always")):
            return Attention.forward(self, x, register_hook)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attn_drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class FusedBlock(PackedBlock):
    """LAVIS' block of ALBEF and BLIP, whose attention is fused in pruned forwards."""

    def forward(self, x: Tensor, *args: Any, run: Any = None, **options: Any) -> Any:
        """Run LAVIS' forward, or a mode; see `PrunableBlock`."""
        if run is not None:
            return run(self, x, **options)
        opened = thread.innermost
        if opened is not None and opened[0] is self.elip and opened[1].level:
            # What is looked through has no gradient to keep.
            args = args if any(args) and torch.is_grad_enabled() else (FUSED,)
        return Block.forward(self, x, *args, **options)


def fuse_attention(model: nn.Module) -> None:
    """Give all attention of a model's towers the fused form, in place, to compare with."""
    for module in list(model.modules()):
        if type(module) is Attention:
            Swap(module, patched_class(FusedAttention, Attention), {"elip_always": True}).apply()


PARTS = Parts(
    "norm1",
    projections=("attn.qkv",),
    heads="attn.num_heads",
    output=("attn.proj",),
    norm_2="norm2",
    mlp=("mlp.fc1", "mlp.act", "mlp.fc2"),  # without dropout
    stochastic_depth="drop_path",
)
CLIP_PARTS = Parts("ln_1", "attn", norm_2="ln_2", mlp=("mlp",))
"""Batch first in all modes; by itself a block is sequence first."""


def describe(tower: Any) -> Tower:
    """Describe a vision tower; see `Host.describe`."""
    if isinstance(tower, VisionTransformer):
        return _describe_vit(tower)
    if type(tower) is clip.VisualTransformer:
        return Tower(
            tower,
            "transformer.resblocks",
            {clip.ResidualAttentionBlock: CLIP_PARTS},
            tower.positional_embedding.shape[0] - 1,
            tower.transformer.width,
            norm="ln_post",
            patch_embed="conv1",
            calling=Calling(sequence_first=True),
            restores=False,
        )
    raise UnsupportedModelError(
        f"vision tower {type(tower).__name__} cannot be pruned: LAVIS' VisionTransformer (ALBEF, "
        "BLIP) and the ViT of its CLIP can; of a model pass visual_encoder"
    )


def _describe_vit(tower: Any) -> Tower:
    attentions = [block.attn for block in tower.blocks]
    return Tower(
        tower,
        "blocks",
        {Block: patched_class(FusedBlock, Block, PARTS)},
        tower.patch_embed.num_patches,
        tower.embed_dim,
        scale=attentions[0].scale,
        norm="norm",
        patch_embed="patch_embed.proj",
        entries=("forward", "forward_features"),
        restores=False,
        patch_all_blocks=True,
        swaps=tuple(Swap(attn, patched_class(FusedAttention, Attention)) for attn in attentions),
    )
