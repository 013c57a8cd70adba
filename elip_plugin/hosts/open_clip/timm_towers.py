"""timm's trunks as OpenCLIP wraps them.

VisionTransformer (SigLIP, MobileCLIP-B and -L), and Eva (EVA01, EVA02, the Perception Encoder).
"""

from __future__ import annotations

import math
from typing import Any

from open_clip.timm_model import TimmModel
from timm.layers import PatchEmbed
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.open_clip.timm_blocks import eva_parts, plain_parts
from elip_plugin.patching.description import Tower
from elip_plugin.patching.named import NamedAsReplaced, patched_class
from elip_plugin.patching.rotary import rotations
from elip_plugin.patching.runner import Calling
from elip_plugin.patching.swap import Swap

EVA = (EvaBlock, EvaBlockPostNorm)
TRUNKS = (VisionTransformer, Eva)


class ResizedTower(NamedAsReplaced):
    """OpenCLIP's wrapper, which keeps the plan in step with the resolution."""

    def set_input_size(self, image_size: int | tuple[int, int]) -> None:
        """Change the resolution, and the plan with it."""
        super().set_input_size(image_size)  # type: ignore[misc]
        self.elip.replan(math.prod(self.trunk.patch_embed.grid_size))


def describe(visual: Any) -> Tower:
    """Describe a wrapped timm tower; see `Host.describe`."""
    trunk = visual.trunk
    kind = type(trunk)
    if kind not in TRUNKS:
        raise UnsupportedModelError(
            f"timm trunk {kind.__name__} is not supported: timm's VisionTransformer and Eva are (a "
            "NaFlexVit gives each image its own number of patches, and a mask for the rest)"
        )
    blocks = trunk.blocks
    more: dict[str, Any] = {}
    if isinstance(blocks[0], EVA):
        if getattr(trunk, "rope_mixed", False):
            raise UnsupportedModelError(
                f"a timm {kind.__name__} with rotary positions of its own in each block: those "
                "that all blocks share are supported"
            )
        rotary = trunk.rope is not None
        more["parts"] = {type(b): eva_parts(b, rotary) for b in blocks if isinstance(b, EVA)}
        more["calling"] = Calling(positions=("rope",), positions_for=rotations)
    else:
        more["parts"] = {type(b): plain_parts(b) for b in blocks if type(b) is Block}
        more["scale"] = blocks[0].attn.scale
    # What normalizes the tokens, or their mean, after the last block.
    norms, nothing = ("norm", "fc_norm"), (nn.Identity, type(None))
    return Tower(
        trunk,
        "blocks",
        num_patches=math.prod(trunk.patch_embed.grid_size),
        width=trunk.embed_dim,
        prefix=trunk.num_prefix_tokens,
        class_query=trunk.cls_token is not None and _reads_class_token(trunk),
        norm=next((n for n in norms if not isinstance(getattr(trunk, n, None), nothing)), ""),
        # A stem of several convolutions makes no token of one patch.
        patch_embed="patch_embed.proj" if type(trunk.patch_embed) is PatchEmbed else "",
        entries=("forward", "forward_features"),
        restores=trunk.global_pool != "token",
        swaps=(Swap(visual, patched_class(ResizedTower, TimmModel)),),
        **more,
    )


def _reads_class_token(trunk: Any) -> bool:
    """Tell whether the pooling reads the class token; refuse one without an image feature."""
    attn_pool, pool = getattr(trunk, "attn_pool", None), trunk.global_pool
    if (attn_pool is not None) != (pool == "map") or pool not in ("token", "avg", "map"):
        raise UnsupportedModelError(
            f"timm pooling {pool!r} is not supported: token, avg and map are"
        )
    return pool == "token" or (pool == "map" and type(trunk) is Eva)
