"""Small models of transformers with random weights, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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
BLIP_TEXT = {**TEXT, **NO_DROPOUT, "hidden_size": 48, "pad_token_id": 0, "sep_token_id": 97}
QFORMER = {
    **BERT,
    "num_hidden_layers": 4,
    "pad_token_id": 0,
    "encoder_hidden_size": 48,
    "cross_attention_frequency": 2,
    "use_qformer_text_input": True,
}
OPT = {
    "model_type": "opt",
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "ffn_dim": 64,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "dropout": 0.0,
}
IMAGE_TOKEN, QUERIES = 96, 4
"""What stands in a text for the tokens that BLIP-2 makes of an image, and how many they are."""

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


def _blip(kind: str, **vision: Any) -> Any:
    sizes = {"projection_dim": 24, "image_text_hidden_size": 24}
    config = hf.BlipConfig(text_config=BLIP_TEXT, vision_config={**VISION, **vision}, **sizes)
    return getattr(hf, f"Blip{kind}")(config)


def _qformer(kind: str, config: Any, image_token: int | None = IMAGE_TOKEN, **vision: Any) -> Any:
    made = config(
        vision_config={**VISION, **vision},
        qformer_config=QFORMER,
        text_config=OPT,
        num_query_tokens=QUERIES,
        image_token_index=image_token,
    )
    made.video_token_id = image_token
    made.image_text_hidden_size = 24
    return getattr(hf, kind)(made)


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
    "blip": lambda **vision: _blip("Model", **vision),
}
"""Models that embed images and texts."""

READERS: dict[str, Callable[..., Any]] = {
    "blip_vqa": lambda **vision: _blip("ForQuestionAnswering", **vision),
    "blip_itm": lambda **vision: _blip("ForImageTextRetrieval", **vision),
    "blip2_itm": lambda **vision: _qformer(
        "Blip2ForImageTextRetrieval", hf.Blip2Config, None, **vision
    ),
    "instructblip": lambda **vision: _qformer(
        "InstructBlipForConditionalGeneration", hf.InstructBlipConfig, **vision
    ),
    "instructblip_model": lambda **vision: _qformer(
        "InstructBlipModel", hf.InstructBlipConfig, **vision
    ),
    "instructblip_video": lambda **vision: _qformer(
        "InstructBlipVideoForConditionalGeneration", hf.InstructBlipVideoConfig, **vision
    ),
}
"""Models whose text side reads the tower by cross-attention, and guides it."""

UNGUIDED: dict[str, Callable[..., Any]] = {
    "blip_caption": lambda **vision: _blip("ForConditionalGeneration", **vision),
    "blip2": lambda **vision: _qformer("Blip2ForConditionalGeneration", hf.Blip2Config, **vision),
    "blip2_model": lambda **vision: _qformer("Blip2Model", hf.Blip2Config, **vision),
}
"""Models whose text is the answer, so that the image alone chooses."""

ALL = {**MODELS, **READERS, **UNGUIDED}


def make(family: str, seed: int = 0, **vision: Any) -> Any:
    """Build a small model; its weights are drawn wide, so that tokens differ."""
    torch.manual_seed(seed)
    model = ALL[family](**vision)
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


def inputs(seed: int = 1, batch: int = BATCH, family: str = "") -> dict[str, Any]:
    """Random pairs that fit all models that embed images and texts, or those of one family."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 96, (batch, 12), generator=generator)
    ids[:, -1] = TEXT["eos_token_id"]
    images = torch.randn(batch, 3, 64, 64, generator=generator)
    mask = torch.ones_like(ids)
    text = {"input_ids": ids, "attention_mask": mask}
    if family in ("", *MODELS):
        return {**text, "pixel_values": images, "return_loss": True}
    mask[0, 9:] = 0
    if family in ("blip_itm", "blip2_itm"):
        head = "use_itm_head" if family == "blip_itm" else "use_image_text_matching_head"
        return {**text, "pixel_values": images, head: True}
    if family.startswith("blip_"):
        return {**text, "pixel_values": images, "labels": ids}
    if family.startswith("instructblip"):
        text = {f"qformer_{name}": value for name, value in text.items()}
    else:
        text = {}
    frames = 1
    if family == "instructblip_video":
        frames = 2
        images = torch.stack([images, images.flip(0)], dim=1)
    prompt = torch.cat([torch.full((batch, frames * QUERIES), IMAGE_TOKEN), ids], dim=1)
    text |= {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    labels = {} if family == "instructblip_model" else {"labels": prompt}
    return {**text, "pixel_values": images, **labels}


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors of an output."""
    if isinstance(value, torch.Tensor):
        return [value]
    if hasattr(value, "values"):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors(part)]
    return []


def loss_of(out: Any) -> torch.Tensor:
    """The loss of an output, or one made of its tensors."""
    loss = getattr(out, "loss", None)
    if loss is not None:
        return loss
    parts = [tensor.square().mean() for tensor in tensors(out) if tensor.requires_grad]
    return torch.stack(parts).sum()


def processor(family: str) -> Any:
    """The image processor of a family, for images of 64 pixels."""
    if family == "siglip":
        return hf.SiglipImageProcessor(size={"height": 64, "width": 64})
    if "blip" in family:
        return hf.BlipImageProcessor(size={"height": 64, "width": 64})
    return hf.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64)


def save_processor(family: str, folder: Path) -> None:
    processor(family).save_pretrained(folder)


def save(family: str, folder: Path, **vision: Any) -> Path:
    """Save a model and its image processor; return the folder."""
    make(family, **vision).save_pretrained(folder)
    save_processor(family, folder)
    return folder
