"""LAVIS' vision tower (ALBEF, BLIP): its blocks learn to score and to prune on entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from lavis.models.vit import Block, VisionTransformer
from torch import Tensor, nn

from elip_plugin.config import ElipConfig
from elip_plugin.core.score import LOOK, SCORE, class_attention
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.pruner import Pruner
from elip_plugin.surgery import Patched, choose, swap


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

        Args:
            x: Tokens [B, T, D].
            register_hook: As in LAVIS.
            elip: None runs the block, "look" without dropout and stochastic depth,
                "score" gives the class token's attention row.

        Returns:
            Tokens [B, T', D], or attention [B, T].
        """
        if elip == LOOK:
            return _look(self, x)
        if elip == SCORE:
            return _class_row(self, x)
        return super().forward(self.elip.enter(x, self.elip_block, self.training), register_hook)


def _heads(x: Tensor, parts: int, num_heads: int) -> Any:
    batch, tokens, _ = x.shape
    return x.view(batch, tokens, parts, num_heads, -1).permute(2, 0, 3, 1, 4)


def _look(block: Any, x: Tensor) -> Tensor:
    attn, mlp = block.attn, block.mlp
    q, k, v = _heads(attn.qkv(block.norm1(x)), 3, attn.num_heads)
    mixed = F.scaled_dot_product_attention(q, k, v, scale=attn.scale)
    x = x + attn.proj(mixed.transpose(1, 2).flatten(2))
    return x + mlp.fc2(mlp.act(mlp.fc1(block.norm2(x))))


def _class_row(block: Any, x: Tensor) -> Tensor:
    attn, z = block.attn, block.norm1(x)
    width = z.shape[-1]
    weight, bias = attn.qkv.weight, attn.qkv.bias
    query_bias, key_bias = (None, None) if bias is None else (bias[:width], bias[width : 2 * width])
    (query,) = _heads(F.linear(z[:, :1], weight[:width], query_bias), 1, attn.num_heads)
    (keys,) = _heads(F.linear(z, weight[width : 2 * width], key_bias), 1, attn.num_heads)
    return class_attention(query[:, :, 0], keys, attn.scale)


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
        self.stages = {stage.block: stage for stage in self.plan.stages}

    def enter(self, x: Tensor, block: int, training: bool) -> Tensor:
        """Prune the tokens that enter a block, if a stage stands before it.

        Args:
            x: Tokens [B, T, D].
            block: The block's index.
            training: The block's `training` flag.

        Returns:
            Tokens [B, T', D].
        """
        if block not in self.stages or not self.active(training):
            return x
        return self.run(x, self.stages[block], self.blocks, training)


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
    patched = [(block, choose(block, {Block: ElipBlock})) for block in tower.blocks]
    pruner = TowerPruner(
        config, tower.blocks, num_patches=tower.patch_embed.num_patches, width=tower.embed_dim
    )
    for i, (block, cls) in enumerate(patched):
        swap(block, cls, elip=pruner, elip_block=i)
    return pruner
