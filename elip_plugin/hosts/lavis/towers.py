"""LAVIS' vision tower (ALBEF, BLIP): its blocks learn to score and to prune on entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lavis.models.vit import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elip_plugin.config import ElipConfig
from elip_plugin.core.score import LOOK, SCORE, attention_row
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.pruner import Pruner
from elip_plugin.patching.swap import Patched, choose_all, swap
from elip_plugin.reducers import tome


class ElipBlock(Patched, Block):
    """A block that prunes what enters it, and can be looked through or asked to score.

    LAVIS checkpoints inside the block (attention and MLP), so pruning on entry stays
    outside the checkpointed regions.
    """

    replaces = Block

    if TYPE_CHECKING:
        elip: TowerPruner
        elip_block: int

    def forward(self, x: Tensor, register_hook: bool = False, elip: str | None = None) -> Tensor:
        """Run the block, look through it, or score tokens.

        While pruning is active the attention is fused; otherwise, and where the attention map
        is asked for, the block runs as LAVIS wrote it.

        Args:
            x: Tokens [B, T, D].
            register_hook: As in LAVIS: keep the attention map.
            elip: None runs the block, "look" without dropout and stochastic depth,
                "score" gives the class token's attention row.

        Returns:
            Tokens [B, T', D], or attention [B, T].
        """
        if elip == LOOK:
            x = x + _attention(self.attn, self.norm1(x))
            return x + self.mlp.fc2(self.mlp.act(self.mlp.fc1(self.norm2(x))))
        if elip == SCORE:
            z, attn = self.norm1(x), self.attn
            weight, bias = attn.qkv.weight, attn.qkv.bias
            return attention_row(z, z[:, :1], weight, bias, attn.num_heads, scale=attn.scale)
        if not self.elip.active(self.training):
            return super().forward(x, register_hook)
        x = self.elip.enter(x, self.elip_block, self.training)
        if register_hook:
            return super().forward(x, register_hook)
        x = x + self.drop_path(_main_attention(self.attn, self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def _attention(attn: Any, z: Tensor, dropout: float = 0.0) -> Tensor:
    packed = attn.qkv(z).unflatten(-1, (3, attn.num_heads, -1))
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=attn.scale)
    return attn.proj(mixed.transpose(1, 2).flatten(2))


def _main_attention(attn: Any, z: Tensor) -> Tensor:
    dropout = attn.attn_drop.p if attn.training else 0.0
    # `vit_grad_ckpt` puts fairscale's wrapper into the instance; fused attention goes past it.
    if "forward" in vars(attn) and torch.is_grad_enabled():
        mixed = checkpoint(_attention, attn, z, dropout, use_reentrant=False)
    else:
        mixed = _attention(attn, z, dropout)
    return attn.proj_drop(mixed)


class TowerPruner(Pruner):
    """A pruner that the blocks of a tower call as tokens enter them.

    Args:
        config: What to prune.
        blocks: The tower's own list, so that blocks wrapped later are called wrapped.
        num_patches: Patches N; LAVIS towers take no other number.
        width: Tower width D.
    """

    def __init__(
        self, config: ElipConfig, blocks: nn.ModuleList, *, num_patches: int, width: int
    ) -> None:
        super().__init__(config, num_patches=num_patches, depth=len(blocks), width=width)
        self.blocks = blocks

    def enter(self, x: Tensor, block: int, training: bool) -> Tensor:
        """Prune the tokens that enter a block, if a stage stands before it; pruning is active.

        Args:
            x: Tokens [B, T, D].
            block: The block's index.
            training: The block's `training` flag.

        Returns:
            Tokens [B, T', D].
        """
        for stage in self.plan_for(self.plan.num_patches, training).stages:
            if stage.block == block:
                return self.run(x, stage, self.blocks, training)
        return x


def patch_tower(tower: Any, config: ElipConfig) -> Pruner:
    """Patch a LAVIS vision tower in place.

    Args:
        tower: A `lavis.models.vit.VisionTransformer`.
        config: What to prune.

    Returns:
        The tower's pruner.

    Raises:
        UnsupportedModelError: Before anything is changed.
        PlanError: Before anything is changed.
    """
    if not isinstance(tower, VisionTransformer):
        raise UnsupportedModelError(
            f"{type(tower).__name__}: only LAVIS' VisionTransformer is supported; pass the "
            "model's visual_encoder"
        )
    tome.refuse(config, "LAVIS' vision towers")
    patched = choose_all(tower.blocks, {Block: ElipBlock})
    pruner = TowerPruner(
        config, tower.blocks, num_patches=tower.patch_embed.num_patches, width=tower.embed_dim
    )
    for i, (block, cls) in enumerate(patched):
        swap(block, cls, elip=pruner, elip_block=i)
    pruner.follow(tower.parameters())
    return pruner
