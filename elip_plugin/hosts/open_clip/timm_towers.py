"""timm's trunks as OpenCLIP wraps them; here VisionTransformer (SigLIP, MobileCLIP-B and -L)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from open_clip.timm_model import TimmModel
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.open_clip import eva_towers, relpos_towers
from elip_plugin.hosts.open_clip.grid import grid_of
from elip_plugin.hosts.open_clip.timm_blocks import parts_of, refuse_other_attention
from elip_plugin.hosts.open_clip.timm_trunk import (
    PrunableTrunk,
    has_stochastic_depth,
    last_norm,
    patch_convolution,
    refuse_dropout,
    shape_of,
)
from elip_plugin.patching.description import Tower
from elip_plugin.patching.parts import parts_block
from elip_plugin.patching.swap import Patched, Swap, swaps_for


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
        self.trunk.elip.replan(math.prod(grid_of(self)))


def describe(visual: Any) -> Tower:
    """Describe a wrapped timm tower; see `Host.describe`."""
    trunk = visual.trunk
    describe_trunk = TRUNKS.get(type(trunk))
    if describe_trunk is None:
        allowed = sorted(cls.__name__ for cls in TRUNKS)
        raise UnsupportedModelError(
            f"timm trunk {type(trunk).__name__} is not supported: timm's {', '.join(allowed)} are"
        )
    tower = describe_trunk(trunk, math.prod(grid_of(visual)))
    return replace(tower, others=(Swap(visual, ElipTimmModel),), module=visual)


def _describe_vit(trunk: Any, num_patches: int) -> Tower:
    shape = shape_of(trunk, num_patches, trunk.cls_token is not None)
    for block in trunk.blocks:
        refuse_other_attention(block)
        refuse_dropout(block.modules())
    patched = {Block: parts_block(Block, parts_of(trunk.blocks[0]))}
    return Tower(
        shape,
        Swap(trunk, ElipTimmTrunk),
        swaps_for(trunk.blocks, patched, elip_scale=trunk.blocks[0].attn.scale),
        random_blocks=has_stochastic_depth(trunk.blocks),
        patch_embed=patch_convolution(trunk),
        norm=last_norm(trunk),
    )


TRUNKS: dict[type, Callable[[Any, int], Tower]] = {
    VisionTransformer: _describe_vit,
    Eva: eva_towers.describe,
    VisionTransformerRelPos: relpos_towers.describe,
}
if importlib.util.find_spec("timm.models.naflexvit") is not None:  # since timm 1.0.16
    from timm.models.naflexvit import NaFlexVit

    from elip_plugin.hosts.open_clip import naflex_towers

    TRUNKS[NaFlexVit] = naflex_towers.describe
