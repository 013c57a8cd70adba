"""The vision encoders of transformers, by the layers that they have."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from elip_plugin.patching.description import Tower
from elip_plugin.patching.parts import Parts
from elip_plugin.patching.runner import Calling

SEPARATE = Parts(
    "layer_norm1",
    projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    heads="self_attn.num_heads",
    output=("self_attn.out_proj",),
    norm_2="layer_norm2",
    mlp=("mlp",),
)
PACKED = replace(SEPARATE, projections=("self_attn.qkv",), output=("self_attn.projection",))

LAYERS = {
    "CLIPEncoderLayer": SEPARATE,
    "SiglipEncoderLayer": SEPARATE,
    "MetaClip2EncoderLayer": SEPARATE,
    "AltCLIPEncoderLayer": SEPARATE,
    "ChineseCLIPVisionLayer": SEPARATE,
    "BlipEncoderLayer": PACKED,
    "Blip2EncoderLayer": PACKED,
    "InstructBlipEncoderLayer": PACKED,
    "InstructBlipVideoEncoderLayer": PACKED,
}
"""Where layers have their parts, by the names of their classes."""

LISTS = ("encoder.layers", "layers")
"""Where towers have their layers."""

TOWERS = ("VisionModel", "VisionModelWithProjection", "VisionTransformer")
"""What the names of vision towers without a text model end in."""


def name_of(cls: type) -> str:
    """Return the name of a class of transformers; "" for that of anybody else."""
    return cls.__name__ if cls.__module__.startswith("transformers.") else ""


def find_layers(tower: Any) -> str:
    """Return the path of a tower's layers; "" where there are none that are known."""
    for path in LISTS:
        try:
            layers = tower.get_submodule(path)
        except AttributeError:
            continue
        if name_of(type(layers[0])) in LAYERS and hasattr(tower, "embeddings"):
            return path
    return ""


def describe(tower: Any) -> Tower:
    """Describe a vision tower; see `Host.describe`."""
    path = find_layers(tower)
    first, embeddings = tower.get_submodule(path)[0], tower.embeddings
    parts = LAYERS[name_of(type(first))]
    parameters = list(inspect.signature(type(first).forward).parameters.values())[2:]
    masks = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    returns = str(inspect.signature(type(first).forward).return_annotation)
    prefix = int(hasattr(embeddings, "class_embedding"))
    return Tower(
        tower,
        path,
        {type(first): parts},
        embeddings.num_patches,
        tower.config.hidden_size,
        prefix,
        class_query=prefix == 1,
        norm="post_layernorm",
        patch_embed="embeddings.patch_embedding",
        restores=parts is not PACKED,  # BLIP's, whose text side reads what is left
        calling=Calling(as_tuple="tuple" in returns.lower(), args=(None,) * len(masks)),
    )
