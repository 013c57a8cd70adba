"""What models are built from without weights: a table of well-known ones, a folder's config."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from elip_plugin.errors import DataError, UnsupportedModelError

PREFIX = "hf:"

CONFIG_KEY = "elip"
"""Key of a saved model's config: what its vision tower was pruned by."""


class Encoder(NamedTuple):
    """The numbers of a transformer encoder."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int


SMALL_TEXT = Encoder(512, 12, 8, 2048)
BASE = Encoder(768, 12, 12, 3072)
LARGE = Encoder(1024, 24, 16, 4096)
HUGE = Encoder(1280, 32, 16, 5120)
SO400M = Encoder(1152, 27, 16, 4304)


class Shape(NamedTuple):
    """What a model is built from, without its weights.

    Attributes:
        model_type: Its family in transformers.
        vision: The vision encoder.
        text: The text encoder.
        patch_size: Pixels of a patch's side.
        image_size: Pixels of an image's side.
        vocab_size: Size of the text's vocabulary.
        architecture: Its class, where a family has several.
    """

    model_type: str
    vision: Encoder
    text: Encoder
    patch_size: int
    image_size: int
    vocab_size: int
    architecture: str = ""


def _clip(vision: Encoder, text: Encoder, patch_size: int, image_size: int = 224) -> Shape:
    return Shape("clip", vision, text, patch_size, image_size, 49408)


def _siglip(vision: Encoder, patch_size: int, image_size: int, vocab_size: int = 32000) -> Shape:
    # The text encoder has the vision encoder's numbers.
    return Shape("siglip", vision, vision, patch_size, image_size, vocab_size)


def _blip(kind: str, vision: Encoder = BASE) -> Shape:
    return Shape("blip", vision, BASE, 16, 384, 30524, f"BlipFor{kind}")


_siglip_2 = functools.partial(_siglip, vocab_size=256000)

SHAPES = {
    "openai/clip-vit-base-patch32": _clip(BASE, SMALL_TEXT, 32),
    "openai/clip-vit-base-patch16": _clip(BASE, SMALL_TEXT, 16),
    "openai/clip-vit-large-patch14": _clip(LARGE, BASE, 14),
    "openai/clip-vit-large-patch14-336": _clip(LARGE, BASE, 14, 336),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": _clip(BASE, SMALL_TEXT, 32),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": _clip(HUGE, Encoder(1024, 24, 16, 4096), 14),
    "google/siglip-base-patch16-224": _siglip(BASE, 16, 224),
    "google/siglip-base-patch16-256": _siglip(BASE, 16, 256),
    "google/siglip-base-patch16-384": _siglip(BASE, 16, 384),
    "google/siglip-base-patch16-512": _siglip(BASE, 16, 512),
    "google/siglip-large-patch16-256": _siglip(LARGE, 16, 256),
    "google/siglip-large-patch16-384": _siglip(LARGE, 16, 384),
    "google/siglip-so400m-patch14-224": _siglip(SO400M, 14, 224),
    "google/siglip-so400m-patch14-384": _siglip(SO400M, 14, 384),
    "google/siglip2-base-patch16-224": _siglip_2(BASE, 16, 224),
    "google/siglip2-base-patch16-256": _siglip_2(BASE, 16, 256),
    "google/siglip2-base-patch16-384": _siglip_2(BASE, 16, 384),
    "google/siglip2-base-patch16-512": _siglip_2(BASE, 16, 512),
    "google/siglip2-large-patch16-256": _siglip_2(LARGE, 16, 256),
    "google/siglip2-large-patch16-384": _siglip_2(LARGE, 16, 384),
    "google/siglip2-so400m-patch14-224": _siglip_2(SO400M, 14, 224),
    "google/siglip2-so400m-patch14-384": _siglip_2(SO400M, 14, 384),
    "Salesforce/blip-vqa-base": _blip("QuestionAnswering"),
    "Salesforce/blip-vqa-capfilt-large": _blip("QuestionAnswering"),
    "Salesforce/blip-itm-base-coco": _blip("ImageTextRetrieval"),
    "Salesforce/blip-itm-large-coco": _blip("ImageTextRetrieval", LARGE),
    "Salesforce/blip-image-captioning-base": _blip("ConditionalGeneration"),
    "Salesforce/blip-image-captioning-large": _blip("ConditionalGeneration", LARGE),
}

BLIP_TYPES = ("blip", "blip-2", "instructblip")
"""Families of which each class of models has a default of its own."""

MODEL_TYPES = ("clip", "siglip", "metaclip_2", "altclip", "chinese_clip", *BLIP_TYPES)
"""Families whose folders can be built; as written in a folder's config.json."""


def read_json(folder: str) -> dict[str, Any]:
    """Read a folder's config.json, which names a model's type."""
    path = Path(folder) / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no config of a transformers model: {error!r}") from error
    return config


def read_config(folder: str) -> dict[str, Any]:
    """Read a folder's config.json; refuse a model that is not of these families."""
    config = read_json(folder)
    model_type = config["model_type"]
    if model_type not in MODEL_TYPES:
        raise UnsupportedModelError(
            f"{folder} holds a model of type {model_type!r}; those of {list(MODEL_TYPES)} can be "
            "built by name (SigLIP 2 at a fixed size is 'siglip'; NaFlex, 'siglip2', has masks)"
        )
    return config
