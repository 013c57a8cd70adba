"""From a text feature to a text guide: a tower's linear maps, transposed, in reverse order.

A tower's feature passes from its width to the embedding through linear maps; their transposes
project a text feature back. Norms, and the MLP beside the residual path of a map pooling, are
left out, as the paper leaves out the last norm.
"""

from __future__ import annotations

from typing import Any

from open_clip.transformer import Attention
from torch import Tensor, nn

from elip_plugin.core.guide import project_to_vision_width
from elip_plugin.errors import UnsupportedModelError
from elip_plugin.patching.maps import linear_map, pooling_maps
from elip_plugin.patching.wrappers import innermost


def linear_maps(visual: Any) -> list[Tensor]:
    """List the maps from a tower's width to the embedding, last one first: [E, .], ..., [., D]."""
    if hasattr(visual, "trunk"):
        return _timm_maps(visual)
    maps = [] if visual.proj is None else [visual.proj.t()]
    pool = visual.attn_pool
    return maps if pool is None else [*maps, *pooling_maps(pool.attn, Attention)]


def _timm_maps(visual: Any) -> list[Tensor]:
    maps = []
    heads = [module for module in visual.head if not isinstance(module, nn.Dropout)]
    for module in [*reversed(heads), visual.trunk.head]:
        if hasattr(innermost(module), "in_features"):  # quantized, it is no nn.Linear
            maps.append(linear_map(module))
        elif not isinstance(module, nn.Identity):
            raise UnsupportedModelError(
                f"the image head {type(module).__name__} has no linear map through which text "
                "could guide the tower; use timm_proj 'linear', or text_weight 0 to prune by the "
                "image alone"
            )
    pool = getattr(visual.trunk, "attn_pool", None)
    if pool is not None:
        maps += [linear_map(pool.proj)] if hasattr(innermost(pool.proj), "in_features") else []
        maps.append(linear_map(pool.kv).chunk(2)[1])
    return maps


def text_guide(module: Any, features: Tensor) -> Tensor:
    """Turn text features [B, E], or a ready guide [B, D], into a guide; see `Host`."""
    if not hasattr(module, "visual"):
        return features.detach()
    return project_to_vision_width(features, linear_maps(module.visual))
