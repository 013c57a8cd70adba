"""The vision encoders of transformers, by the layers that they have."""

from __future__ import annotations

import importlib
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
VIT = Parts(
    "layernorm_before",
    projections=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    heads="attention.num_attention_heads",
    output=("attention.o_proj",),
    norm_2="layernorm_after",
    mlp=("mlp",),
)
VIT_4 = replace(
    VIT,
    projections=tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
    heads="attention.attention.num_attention_heads",
    output=("attention.output.dense",),
    mlp=("intermediate", "output.dense"),
)
"""In transformers 4."""

FAMILIES = {
    "clip": ("CLIP", "CLIPEncoderLayer", SEPARATE),
    "siglip": ("Siglip", "SiglipEncoderLayer", SEPARATE),
    "metaclip_2": ("MetaClip2", "MetaClip2EncoderLayer", SEPARATE),
    "altclip": ("AltCLIP", "AltCLIPEncoderLayer", SEPARATE),
    "chinese_clip": ("ChineseCLIP", "ChineseCLIPVisionLayer", SEPARATE),
    "blip": ("Blip", "BlipEncoderLayer", PACKED),
    "blip_2": ("Blip2", "Blip2EncoderLayer", PACKED),
    "instructblip": ("InstructBlip", "InstructBlipEncoderLayer", PACKED),
    "instructblipvideo": ("InstructBlipVideo", "InstructBlipVideoEncoderLayer", PACKED),
    "vit": ("ViT", "ViTLayer", VIT),
}
"""By their folder in transformers: what class names begin with, the layer, where it has its parts.

SigLIP 2 at a fixed size is SigLIP."""

LISTS = ("encoder.layers", "layers", "encoder.layer")
"""Where towers have their layers."""


def find_class(family: str, name: str) -> Any:
    """Return a class of a family; None if this version of transformers has none."""
    try:
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    except ImportError:
        return None
    return getattr(module, name, None)


KNOWN = {
    family: (cls, parts)
    for family, (_, name, parts) in FAMILIES.items()
    if (cls := find_class(family, name)) is not None  # else this version has renamed it
}
LAYERS = dict(KNOWN.values())
TOWERS = {
    find_class(family, prefix + kind)
    for family, (prefix, *_) in FAMILIES.items()
    for kind in ("VisionModel", "VisionModelWithProjection", "VisionTransformer", "Model")
    if family == "vit" or kind != "Model"
} - {None}
"""Vision towers without a text model."""


def find_layers(tower: Any) -> str:
    """Return the path of a tower's layers; "" where there are none that are known."""
    for path in LISTS:
        try:
            layers = tower.get_submodule(path)
        except AttributeError:
            continue
        if type(layers[0]) in LAYERS and hasattr(tower, "embeddings"):
            return path
    return ""


def describe(tower: Any) -> Tower:
    """Describe a vision tower; see `Host.describe`."""
    path = find_layers(tower)
    first, embeddings = tower.get_submodule(path)[0], tower.embeddings
    parts = LAYERS[type(first)]
    plain = parts is VIT
    if plain and not hasattr(first.attention, "q_proj"):
        parts = VIT_4
    parameters = list(inspect.signature(type(first).forward).parameters.values())[2:]
    masks = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    returns = str(inspect.signature(type(first).forward).return_annotation)
    prefix = int(hasattr(embeddings, "class_embedding") or hasattr(embeddings, "cls_token"))
    return Tower(
        tower,
        path,
        {type(first): parts},
        (embeddings.patch_embeddings if plain else embeddings).num_patches,
        tower.config.hidden_size,
        prefix,
        class_query=prefix == 1,
        norm="layernorm" if plain else "post_layernorm",
        patch_embed="embeddings.patch_embedding" + ("s.projection" if plain else ""),
        restores=parts is not PACKED,  # BLIP's, whose text side reads what is left
        calling=Calling(as_tuple="tuple" in returns.lower(), args=(None,) * len(masks)),
    )
