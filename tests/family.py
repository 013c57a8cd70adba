"""Narrow copies of OpenCLIP's models: the same kind of tower, resolution and depth."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any
from unittest import mock

import open_clip
import torch
from open_clip import timm_model

WIDTH = 32
TEXT = {"context_length": 12, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
TIMM = getattr(timm_model, "timm", None) is not None


def narrow(config: dict[str, Any]) -> dict[str, Any]:
    """Shrink a model config in width, and its text tower altogether."""
    config = deepcopy(config)
    vision, text = config["vision_cfg"], config["text_cfg"]
    config["embed_dim"] = WIDTH
    config.pop("custom_text", None)
    if "timm_model_name" not in vision:
        vision.update(width=WIDTH, head_width=16, mlp_ratio=2.0, attn_pooler_heads=2)
    kept = {k: text[k] for k in ("embed_cls", "output_tokens", "no_causal_mask") if k in text}
    config["text_cfg"] = {**TEXT, **kept}
    if "multimodal_cfg" in config:
        config["text_cfg"].update(output_tokens=True, embed_cls=True)
        config["multimodal_cfg"].update(
            width=WIDTH, heads=2, layers=1, **{k: TEXT[k] for k in ("context_length", "vocab_size")}
        )
        config["multimodal_cfg"]["attn_pooler_heads"] = 2
    return config


@contextmanager
def narrow_timm(name: str | None, **options: Any) -> Iterator[None]:
    """Make timm's ViTs narrow while OpenCLIP builds them, with further options of timm's."""
    # MobileCLIP-B's convolutional stem gives 768 channels straight to the blocks.
    sizes = {} if name == "vit_base_mci_224" else {"embed_dim": WIDTH, "num_heads": 2}
    if not TIMM:
        yield
        return
    create = functools.partial(timm_model.timm.create_model, **sizes, **options)
    with mock.patch.object(timm_model.timm, "create_model", create):
        yield


def build(config: dict[str, Any], seed: int = 0, **timm: Any) -> Any:
    """Build a narrow model, pruned where the config has the key, in training mode."""
    factory = open_clip.factory
    kind = "CoCa" if "multimodal_cfg" in config else "CLIP"
    if kind == "CLIP" and "timm_model_name" in config["vision_cfg"]:
        kind = "CustomTextCLIP"
    torch.manual_seed(seed)
    with narrow_timm(config["vision_cfg"].get("timm_model_name"), **timm):
        model = getattr(factory, kind)(**narrow(config))
    if hasattr(model, "output_dict"):
        model.output_dict = True
    return model.train()


def stack_of(model: Any) -> Any:
    """The blocks of a model's vision tower."""
    visual = model.visual
    return visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks


def inputs(model: Any, batch: int = 2, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images and token ids that fit a narrow model."""
    generator = torch.Generator().manual_seed(seed)
    size = model.visual.image_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    images = torch.randn(batch, 3, height, width, generator=generator)
    return images, torch.randint(1, 99, (batch, TEXT["context_length"]), generator=generator)
