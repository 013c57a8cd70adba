"""Small models of transformers with random weights, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from transformers import logging

logging.set_verbosity_error()

VISION: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 8,
}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 16,
    "bos_token_id": 98,
    "eos_token_id": 99,
    "pad_token_id": 1,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = {**TEXT, **NO_DROPOUT, "max_position_embeddings": 32}
BATCH = 3


def _dual(vision: Any) -> Any:
    config = hf.VisionTextDualEncoderConfig.from_vision_text_configs(
        vision, hf.BertConfig(**BERT), projection_dim=24
    )
    return hf.VisionTextDualEncoderModel(config)


def _siglip(**vision: Any) -> Any:
    text = {**TEXT, "hidden_size": 48, "projection_size": 48}
    return hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config={**VISION, **vision}))


def _clip(**vision: Any) -> Any:
    config = hf.CLIPConfig(text_config=TEXT, vision_config={**VISION, **vision}, projection_dim=24)
    return hf.CLIPModel(config)


MODELS: dict[str, Callable[..., Any]] = {
    "clip": _clip,
    "siglip": _siglip,
    "metaclip_2": lambda: hf.MetaClip2Model(
        hf.MetaClip2Config(text_config=TEXT, vision_config=VISION, projection_dim=24)
    ),
    "altclip": lambda: hf.AltCLIPModel(
        hf.AltCLIPConfig(
            text_config={**BERT, "project_dim": 32}, vision_config=VISION, projection_dim=24
        )
    ),
    "chinese_clip": lambda: hf.ChineseCLIPModel(
        hf.ChineseCLIPConfig(text_config=BERT, vision_config=VISION, projection_dim=24)
    ),
    "dual": lambda **vision: _dual(hf.CLIPVisionConfig(**{**VISION, **vision})),
    "dual_vit": lambda **vision: _dual(hf.ViTConfig(**{**VISION, **vision})),
}


def make(family: str, seed: int = 0, **vision: Any) -> Any:
    """Build a small model; its weights are drawn wide, so that tokens differ."""
    torch.manual_seed(seed)
    model = MODELS[family](**vision)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0  # as loading does
    return model


def layers_of(model: Any) -> Any:
    """The layers of a model's vision encoder."""
    while not hasattr(model, "encoder") and hasattr(model, "vision_model"):
        model = model.vision_model
    encoder = getattr(model, "encoder", model)  # a plain ViT has none since transformers 5
    return encoder.layer if hasattr(encoder, "layer") else encoder.layers


def inputs(seed: int = 1, batch: int = BATCH) -> dict[str, Any]:
    """Random pairs that fit all of the models."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 98, (batch, 12), generator=generator)
    ids[:, -1] = TEXT["eos_token_id"]
    images = torch.randn(batch, 3, 64, 64, generator=generator)
    mask = torch.ones_like(ids)
    return {
        "input_ids": ids,
        "pixel_values": images,
        "attention_mask": mask,
        "return_loss": True,
    }
