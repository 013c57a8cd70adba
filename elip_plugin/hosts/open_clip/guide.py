"""From a text feature to a guide for the tower: its linear maps, transposed, in reverse order.

A tower's feature passes from its width to the embedding through linear maps; their transposes
carry a text feature back. Norms, and the MLP beside the residual path of a map pooling, are
left out, as the paper leaves out the last norm.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from elip_plugin.core.guide import carry_back
from elip_plugin.errors import GuideError, UnsupportedModelError


def linear_maps(visual: Any) -> list[Tensor]:
    """List the maps from a tower's width to the embedding, last one first.

    Args:
        visual: An OpenCLIP vision tower, native or wrapping timm's VisionTransformer.

    Returns:
        Matrices [E, .], ..., [., D]: a text feature times them in turn is a guide.

    Raises:
        UnsupportedModelError: If a head has no linear map.
    """
    return _timm_maps(visual) if hasattr(visual, "trunk") else _native_maps(visual)


def _native_maps(visual: Any) -> list[Tensor]:
    maps = [] if visual.proj is None else [visual.proj.t()]
    if visual.attn_pool is not None:
        attn = visual.attn_pool.attn
        value = attn.v_proj_weight  # None where all widths agree and the three are packed
        if value is None:
            value = attn.in_proj_weight.chunk(3)[2]
        maps += [attn.out_proj.weight, value]
    return maps


def _timm_maps(visual: Any) -> list[Tensor]:
    maps = []
    heads = [module for module in visual.head if not isinstance(module, nn.Dropout)]
    for module in [*reversed(heads), visual.trunk.head]:
        if isinstance(module, nn.Linear):
            maps.append(module.weight)
        elif not isinstance(module, nn.Identity):
            raise UnsupportedModelError(
                f"the image head {type(module).__name__} has no linear map through which text "
                "could guide the tower; use timm_proj 'linear', or text_weight 0 to prune by the "
                "image alone"
            )
    pool = visual.trunk.attn_pool
    if pool is not None:
        maps += [pool.proj.weight] if isinstance(pool.proj, nn.Linear) else []
        maps.append(pool.kv.weight.chunk(2)[1])
    return maps


def guide_from_text(features: Tensor, visual: Any) -> Tensor:
    """Turn text features into a guide for the tower (paper, section 3.3).

    Args:
        features: Text features [B, E], of any norm.
        visual: The vision tower.

    Returns:
        L2-normalised features times the tower's transposed maps [B, D], detached.

    Raises:
        GuideError: If the features do not have the model's embedding width.
    """
    maps = linear_maps(visual)
    if features.ndim != 2 or (maps and features.shape[1] != maps[0].shape[0]):
        expected = maps[0].shape[0] if maps else "embedding width"
        raise GuideError(
            f"text features have shape {tuple(features.shape)}, but this model guides by "
            f"(batch, {expected}): pass what encode_text returns"
        )
    return carry_back(features, maps)
