"""Kinds of vision towers, for what must hold for the blocks of each: adapters, int8."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import TINY
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """A model, and the linear layers of its vision tower's blocks.

    Attributes:
        make: Makes the model in training mode.
        encode: From the model and images [B, 3, 64, 64] to features.
        targets: Ends of the names of the layers.
        mlp: Those of them that are in the MLP.
        tower: Part of the name that only modules of the vision tower have.
    """

    make: Callable[[], Any]
    encode: Callable[[Any, Tensor], Any]
    targets: tuple[str, ...]
    mlp: tuple[str, ...] = ()
    tower: str = "visual"


def spread(model: Any) -> Any:
    """Draw weights wider, so that tokens differ and a choice is no matter of rounding."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.train()


def _open_clip() -> Any:
    torch.manual_seed(0)
    return spread(pytest.importorskip("open_clip").CLIP(**TINY, output_dict=True))


def _attends_by_torch() -> bool:
    """Whether OpenCLIP's blocks have torch's attention; those of OpenCLIP 4 have their own."""
    with suppress(ImportError):
        import open_clip

        return not hasattr(open_clip, "create_task")
    return True


def _timm(name: str) -> Any:
    pytest.importorskip("open_clip")
    pytest.importorskip("timm.layers")
    from family import build

    vision = {
        "timm_model_name": name, "timm_pool": "avg", "timm_proj": "linear", "image_size": 64,
    }  # fmt: skip
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": {}}
    return spread(build(config, img_size=64))


def _transformers(family: str) -> Any:
    pytest.importorskip("transformers", minversion="4.57")
    from hosts.transformers.tiny import make

    return make(family).train()


def _encoder(name: str) -> Any:
    hf = pytest.importorskip("transformers", minversion="4.57")
    from hosts.transformers.tiny import NO_DROPOUT, VISION

    torch.manual_seed(0)
    return spread(getattr(hf, f"{name}Model")(getattr(hf, f"{name}Config")(**VISION, **NO_DROPOUT)))


def _lavis(arch: str) -> Any:
    pytest.importorskip("lavis")
    import lavis_family

    return spread(lavis_family.stock(arch))


def _images(model: Any, images: Tensor) -> Any:
    features = model.get_image_features(pixel_values=images)
    return getattr(features, "pooler_output", features)


def _class_token(model: Any, images: Tensor) -> Any:
    return model(pixel_values=images).last_hidden_state[:, 0]


def _first_token(model: Any, images: Tensor) -> Any:
    return model.visual_encoder.forward_features(images)[:, 0]


PACKED = ("qkv", "proj", "fc1", "fc2")
EVA = ("q_proj", "k_proj", "v_proj", "proj", "fc1_g", "fc1_x", "fc2")
CLIP = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
VIT = ("query", "key", "value", "dense", "q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
MULTIHEAD = ("attn", "c_fc", "c_proj")
# Of OpenCLIP 4's own attention, whose weights are no module's, peft adapts the output alone.
OPEN_CLIP = MULTIHEAD if _attends_by_torch() else ("out_proj", *MULTIHEAD[1:])
ROWS = {
    "OpenCLIP": Row(_open_clip, lambda m, x: m.encode_image(x), OPEN_CLIP, OPEN_CLIP[1:]),
    "timm ViT": Row(
        lambda: _timm("vit_small_patch16_224"), lambda m, x: m.encode_image(x), PACKED, PACKED[2:]
    ),
    "timm EVA": Row(
        lambda: _timm("eva02_tiny_patch14_224"), lambda m, x: m.encode_image(x), EVA, EVA[4:]
    ),
    "CLIP": Row(lambda: _transformers("clip"), _images, CLIP, CLIP[4:], "vision_model.enc"),
    "SigLIP": Row(lambda: _transformers("siglip"), _images, CLIP, CLIP[4:], "vision_model.enc"),
    "BLIP": Row(
        lambda: _transformers("blip"), _images, ("qkv", "projection", "fc1", "fc2"),
        ("fc1", "fc2"), "vision_model.enc",
    ),
    "ViT": Row(lambda: _encoder("ViT"), _class_token, VIT, VIT[-2:], "layer"),
    "DINOv2": Row(lambda: _encoder("Dinov2"), _class_token, VIT, VIT[-2:], "layer"),
    "LAVIS ALBEF": Row(
        lambda: _lavis("albef_pretrain"), _first_token, PACKED, PACKED[2:], "visual_encoder.bl"
    ),
    "LAVIS BLIP": Row(
        lambda: _lavis("blip_pretrain"), _first_token, PACKED, PACKED[2:], "visual_encoder.bl"
    ),
    "LAVIS CLIP": Row(
        lambda: _lavis("clip"), lambda m, x: m.encode_image(x), MULTIHEAD, MULTIHEAD[1:]
    ),
}  # fmt: skip

NAMES = [
    pytest.param(name, marks=() if name.startswith("LAVIS") else pytest.mark.newest)
    for name in ROWS
]
"""Those of LAVIS are tried in its own environments."""
