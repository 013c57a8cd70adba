"""A small model of each host, for what must hold for all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import TINY

KINDS = ("OpenCLIP", "timm", "LAVIS", "LAVIS CLIP", "transformers", "transformers BLIP")


@dataclass
class Tower:
    """A model in training mode, and how its vision tower is run.

    Attributes:
        model: The model, unpruned.
        encode: From the model and images to image features.
        blocks: The tower's blocks, of the model or of a copy of it.
        patch: Pixels of a patch's side; pictures have 64.
        dim: Dimension of a block's input that counts tokens.
    """

    model: Any
    encode: Callable[[Any, torch.Tensor], torch.Tensor]
    blocks: Callable[[Any], Any]
    patch: int
    dim: int = 1


def make_tower(kind: str) -> Tower:
    """Make the model of a host; the test is skipped where the host is not installed."""
    torch.manual_seed(0)
    return _MAKERS[kind]()


def _open_clip() -> Tower:
    model = pytest.importorskip("open_clip").CLIP(**TINY, output_dict=True).train()
    return Tower(
        model, lambda m, x: m.encode_image(x), lambda m: m.visual.transformer.resblocks, patch=8
    )


def _timm() -> Tower:
    pytest.importorskip("open_clip")
    pytest.importorskip("timm.layers")
    from family import build

    vision = {
        "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map",
        "timm_proj": "none", "image_size": 64,
    }  # fmt: skip
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": {}}
    model = build(config, img_size=64, depth=12)
    return Tower(model, lambda m, x: m.encode_image(x), lambda m: m.visual.trunk.blocks, patch=16)


def _lavis() -> Tower:
    vit = pytest.importorskip("lavis.models.vit")
    tower = vit.VisionTransformerEncoder(img_size=64, embed_dim=32, num_heads=4).train()
    return Tower(tower, lambda m, x: m.forward_features(x), lambda m: m.blocks, patch=16)


def _lavis_clip() -> Tower:
    pytest.importorskip("lavis")
    import lavis_family as family

    return Tower(
        family.stock("clip"),
        lambda m, x: m.encode_image(x),
        lambda m: m.visual.transformer.resblocks,
        patch=16,
        dim=0,
    )


def _transformers(family: str = "siglip") -> Tower:
    pytest.importorskip("transformers", minversion="4.57")
    from hosts.transformers.tiny import make

    model = make(family).train()
    return Tower(
        model,
        lambda m, x: m.vision_model(pixel_values=x).pooler_output,
        lambda m: m.vision_model.encoder.layers,
        patch=8,
    )


_MAKERS = dict(
    zip(
        KINDS,
        (
            _open_clip,
            _timm,
            _lavis,
            _lavis_clip,
            _transformers,
            functools.partial(_transformers, "blip"),
        ),
    )
)
