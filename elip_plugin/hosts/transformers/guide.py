"""From a text feature to a text guide: a tower's linear maps, transposed, in reverse order.

CLIP's towers have one map, the projection. SigLIP's pool by attention: its output projection and
its values' projection are the maps; the MLP beside its residual path is left out.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from elip_plugin.core.guide import project_to_vision_width
from elip_plugin.errors import GuideError


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
    if hasattr(module, "visual_projection"):
        return [module.visual_projection.weight]
    while not hasattr(module, "encoder"):
        module = module.vision_model
    if not hasattr(module, "head"):
        return []
    attention = module.head.attention
    return [attention.out_proj.weight, attention.in_proj_weight.chunk(3)[2]]


def text_guide(module: Any, features: Tensor) -> Tensor:
    """Turn text features [B, E], or a ready guide [B, D], into a guide; see `Host`."""
    maps = linear_maps(module)
    if not maps:
        return features.detach()
    width = maps[0].shape[0]
    if features.ndim != 2 or features.shape[1] != width:
        raise GuideError(
            f"text features have shape {tuple(features.shape)}, but this model guides by "
            f"(batch, {width}): pass the pooled output of get_text_features"
        )
    return project_to_vision_width(features, maps)
