"""Build the models of transformers with all that planning, measuring and drawing need."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, BlipConfig, CLIPConfig, SiglipConfig
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError, DataError
from elip_plugin.hosts.building import reading, seeded
from elip_plugin.hosts.transformers import blip
from elip_plugin.hosts.transformers.host_models import NO_EXPORT, ReadModel, TransformersModel
from elip_plugin.hosts.transformers.models import describe
from elip_plugin.hosts.transformers.shapes import (
    BLIP_TYPES,
    CONFIG_KEY,
    PREFIX,
    SHAPES,
    read_config,
)
from elip_plugin.patching.install import install
from elip_plugin.patching.monkeypatch import silenced


def create(
    name: str,
    *,
    config: ElipConfig | None = None,
    checkpoint: str = "",
    image_size: int | None = None,
    device: str = "cpu",
) -> TransformersModel:
    """Build a pruned model; `checkpoint` is a folder of `save_pretrained`. See `Host.create`."""
    base = name.removeprefix(PREFIX)
    if checkpoint and image_size is not None:
        raise ConfigError(
            f"image_size {image_size} with the weights of {checkpoint}: transformers has their "
            "positions at one size; leave one of the two out"
        )
    if checkpoint and not Path(checkpoint).is_dir():
        raise DataError(
            f"checkpoint {checkpoint!r} is no folder; transformers' are folders of save_pretrained"
        )
    folder = checkpoint or ("" if base in SHAPES else base)
    section = read_config(folder).get(CONFIG_KEY) if folder else None
    model = _load(checkpoint).to(device) if checkpoint else _build(base, folder, image_size, device)
    model = model.eval()
    description = describe(model)
    if config is None:
        config = ElipConfig.from_mapping(section, default=description.default)
    install(description, config)
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    options = _preprocessing(folder, model.config.model_type)
    is_read = isinstance(model, blip.PrunedBlip)
    return (ReadModel if is_read else TransformersModel)(
        base,
        model,
        (side, side),
        tuple(options["image_mean"]),
        tuple(options["image_std"]),
        checkpoint or "random weights",
        folder=checkpoint,
        squares="height" in options["size"],
        has_text_tower=not is_read,
        no_export=NO_EXPORT if is_read else "",
    )


def _class_of(config: Any) -> Any:
    """Return the class that a config is of, where its family has several; else `AutoModel`."""
    named = {cls.__name__: cls for cls in blip.MODELS}
    return next((named[name] for name in config.architectures or () if name in named), AutoModel)


def _build(base: str, folder: str, image_size: int | None, device: str) -> Any:
    """Build a model with random weights, from a folder's config or the table."""
    if folder:
        host_config = AutoConfig.from_pretrained(folder, local_files_only=True)
    else:
        host_config = _config_of(base)
    if image_size is not None:
        host_config.vision_config.image_size = image_size
    host_config, cls = copy.deepcopy(host_config), _class_of(host_config)
    with seeded(device), silenced(), torch.device(device):
        return cls.from_config(host_config) if cls is AutoModel else cls(host_config)


def _config_of(base: str) -> Any:
    shape = SHAPES[base]
    vision, text = shape.vision._asdict(), shape.text._asdict()
    vision |= {"patch_size": shape.patch_size, "image_size": shape.image_size}
    text["vocab_size"] = shape.vocab_size
    if shape.model_type == "siglip":
        return SiglipConfig(vision_config=vision, text_config=text)
    if shape.model_type == "blip":
        names = {"architectures": [shape.architecture]}
        return BlipConfig(vision_config=vision, text_config=text, **names)
    width = shape.text.hidden_size
    options = {"vision_config": vision, "text_config": text, "projection_dim": width}
    return CLIPConfig(**options)


def _load(checkpoint: str) -> Any:
    with reading(checkpoint, "transformers", partial(_build, "", checkpoint, None, "meta")):
        cls = _class_of(AutoConfig.from_pretrained(checkpoint, local_files_only=True))
        model, info = cls.from_pretrained(
            checkpoint, local_files_only=True, output_loading_info=True
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise DataError(
            f"checkpoint {checkpoint!r} lacks {len(missing)} of the model's weights, e.g. "
            f"{missing[:3]}"
        )
    return model


def _preprocessing(folder: str, model_type: str) -> dict[str, Any]:
    """Return how pictures become images: as the folder says, else as its family does."""
    options: dict[str, Any] = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    options["size"] = {"shortest_edge": 0}  # the length is that of the model's images
    if model_type == "siglip":
        options = {"image_mean": IMAGENET_STANDARD_MEAN, "image_std": IMAGENET_STANDARD_STD}
    if model_type in ("siglip", *BLIP_TYPES):
        options["size"] = {"height": 0, "width": 0}
    path = Path(folder) / "preprocessor_config.json"
    saved = json.loads(path.read_text()) if folder and path.is_file() else {}
    if not isinstance(
        saved.get("size"), dict
    ):  # a number, in old files, means what the family does
        saved.pop("size", None)
    return options | saved
