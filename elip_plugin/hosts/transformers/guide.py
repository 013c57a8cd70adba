"""From a text feature to a text guide: a tower's linear maps, transposed, in reverse order.

CLIP's towers have one map, the projection. SigLIP's pool by attention: its output projection and
its values' projection are the maps; the MLP beside its residual path is left out.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from elip_plugin.core.guide import project_to_vision_width
from elip_plugin.hosts.transformers.blip import PrunedBlip
from elip_plugin.patching.maps import linear_map, pooling_maps


def feature_of(output: Any) -> Tensor:
    """Return the projected feature [B, E] of `get_text_features` or `get_image_features`.

    Args:
        output: A tensor (transformers 4), or an output object or tuple (transformers 5).

    Returns:
        The feature.
    """
    if isinstance(output, Tensor):
        return output
    return output[1] if isinstance(output, tuple) else output.pooler_output


def text_features(model: Any, **inputs: Any) -> Tensor:
    """Encode texts into features [B, E], by any version of transformers.

    Args:
        model: A model.
        **inputs: What its tokenizer gives.

    Returns:
        Features [B, E].
    """
    if model.config.model_type == "chinese_clip":
        # In transformers 4 its own function asks for a pooler that its text model does not have.
        output = model.text_model(**inputs, return_dict=True)
        return model.text_projection(output.last_hidden_state[:, 0])
    return feature_of(model.get_text_features(**inputs))


def linear_maps(module: Any) -> list[Tensor]:
    """List the maps from a tower's width to the embedding, last one first: [E, .], ..., [., D]."""
    maps = [linear_map(module.visual_projection)] if hasattr(module, "visual_projection") else []
    while not hasattr(module, "encoder") and hasattr(module, "vision_model"):
        module = module.vision_model
    if hasattr(module, "head"):
        maps += pooling_maps(module.head.attention)
    return maps


def text_guide(module: Any, features: Tensor) -> Tensor:
    """Turn text features [B, E], or a ready guide [B, D], into a guide; see `Host`."""
    if isinstance(module, PrunedBlip):
        return module.elip_project(features)
    maps = linear_maps(module)
    return project_to_vision_width(features, maps) if maps else features.detach()
