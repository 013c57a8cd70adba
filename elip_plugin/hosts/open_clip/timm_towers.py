"""timm's trunks as OpenCLIP wraps them; here VisionTransformer (SigLIP, MobileCLIP-B and -L)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from open_clip.timm_model import TimmModel
from timm.models.eva import Eva
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from elip_plugin.core.blocks import PackedAttention
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.open_clip import eva_towers, relpos_towers
from elip_plugin.hosts.open_clip.timm_trunk import (
    PrunableTrunk,
    has_stochastic_depth,
    patch_convolution,
    refuse_dropout,
    shape_of,
)
from elip_plugin.patching.blocks import PrunableBlock
from elip_plugin.patching.install import Tower
from elip_plugin.patching.swap import Patched, Swap, choose_all


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


class ElipTimmTrunk(PrunableTrunk, VisionTransformer):
    """timm's VisionTransformer, whose positions are in its tokens."""

    replaces = VisionTransformer

    def embed(self, x: Tensor) -> tuple[Tensor, None]:
        """Return the tokens that enter the first block."""
        return self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x)))), None


class ElipTimmModel(Patched, TimmModel):
    """OpenCLIP's wrapper, which keeps the plan in step with the resolution."""

    replaces = TimmModel

    def set_input_size(self, image_size: int | tuple[int, int]) -> None:
        """Change the resolution, and the plan with it."""
        super().set_input_size(image_size)
        self.trunk.elip.replan(self.trunk.patch_embed.num_patches)


def describe(visual: Any) -> Tower:
    """Describe a wrapped timm tower; see `Host.describe`."""
    trunk = visual.trunk
    describe_trunk = TRUNKS.get(type(trunk))
    if describe_trunk is None:
        allowed = sorted(cls.__name__ for cls in TRUNKS)
        raise UnsupportedModelError(
            f"timm trunk {type(trunk).__name__} is not supported: timm's {', '.join(allowed)} are"
        )
    return replace(describe_trunk(trunk), others=(Swap(visual, ElipTimmModel),), module=visual)


def _describe_vit(trunk: Any) -> Tower:
    shape = shape_of(trunk)
    for block in trunk.blocks:
        if type(block.attn) is not Attention:
            raise UnsupportedModelError(
                f"attention {type(block.attn).__name__} is not supported: timm's Attention is"
            )
        refuse_dropout(block.modules())
    return Tower(
        shape,
        Swap(trunk, ElipTimmTrunk),
        choose_all(trunk.blocks, {Block: ElipTimmBlock}, elip_scale=trunk.blocks[0].attn.scale),
        random_blocks=has_stochastic_depth(trunk.blocks),
        patch_embed=patch_convolution(trunk),
    )


TRUNKS: dict[type, Callable[[Any], Tower]] = {
    VisionTransformer: _describe_vit,
    Eva: eva_towers.describe,
    VisionTransformerRelPos: relpos_towers.describe,
}
