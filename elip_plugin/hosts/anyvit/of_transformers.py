"""Models of transformers from folders of `save_pretrained`, with their own image processors."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from elip_plugin.errors import DataError, UnsupportedModelError
from elip_plugin.hosts.anyvit.image_model import Library
from elip_plugin.hosts.building import reading

OPTIONS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Nothing is downloaded, and no code of a folder is run."""

POOLER = "pooler."
"""Names of the weights of what many families pool by, which many published folders lack."""


def load(folder: str, checkpoint: str, image_size: int | None) -> Library:
    """Build the model of a folder.

    Args:
        folder: A folder with a `config.json`.
        checkpoint: A folder with weights; "" for random ones.
        image_size: Pixels of a side; None for what the folder's image processor gives, or where it
            has none for what the config says.

    Returns:
        The model, and what belongs to it.

    Raises:
        DataError: If the checkpoint cannot be read, or has no image processor.
        UnsupportedModelError: If transformers has no such model, or its images are not square.
    """
    source = checkpoint or folder
    if not Path(source).is_dir():
        raise DataError(
            f"checkpoint {checkpoint!r} is no folder; transformers' are folders of save_pretrained"
        )
    config = _config(source)
    processor, side = _processor(source, image_size, required=bool(checkpoint))
    side = side or image_size or _own_side(config)
    if side is None:
        raise UnsupportedModelError(
            f"{source} has no image processor, and its config no image_size: give image_size"
        )
    if not checkpoint and image_size is not None:
        # Random positions may as well be of the size that is asked for; trained ones stay, and the
        # model's own forward says whether it takes other images.
        part: Any = getattr(config, "vision_config", config)
        if hasattr(part, "image_size"):
            part.image_size = image_size
    model = _load(checkpoint) if checkpoint else _build(config, source)
    mean, std = (getattr(processor, f"image_{each}", None) for each in ("mean", "std"))
    return Library(
        model,
        side,
        partial(_preprocess, processor, source),
        tuple(mean or (0.0,) * 3),
        tuple(std or (1.0,) * 3),
        encode,
        partial(_save, processor),
        save_weights=_save_weights,
        checkpoint=_checkpoint,
    )


def _config(source: str) -> Any:
    try:
        return AutoConfig.from_pretrained(source, **OPTIONS)
    except Exception as error:  # an unknown type, code of its own, a broken file
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedModelError(
            f"{source} holds no model that this version of transformers builds: {reason}"
        ) from error


def _build(config: Any, source: str) -> Any:
    try:
        return AutoModel.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise UnsupportedModelError(
            f"transformers builds no model from {source}: {' '.join(str(error).split())[:200]}"
        ) from error


def _load(checkpoint: str) -> Any:
    with reading(checkpoint, "transformers", lambda: _build(_config(checkpoint), checkpoint)):
        model, missing = _from_pretrained(checkpoint)
        if missing and all(name.startswith(POOLER) for name in missing):
            # Else its features would be what random weights make of the class token.
            model, missing = _from_pretrained(checkpoint, add_pooling_layer=False)
    if missing:
        raise DataError(
            f"checkpoint {checkpoint!r} lacks {len(missing)} of the model's weights, e.g. "
            f"{missing[:3]}"
        )
    return model


def _from_pretrained(checkpoint: str, **options: Any) -> tuple[Any, list[str]]:
    model, info = AutoModel.from_pretrained(
        checkpoint, output_loading_info=True, dtype=torch.float32, **OPTIONS, **options
    )
    return model, sorted(info["missing_keys"])


def _save_weights(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)


def _own_side(config: Any) -> int | None:
    """Return the side that a config names; None if it names none, or unequal ones."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if isinstance(size, (list, tuple)) and len(set(size)) == 1:
        size = size[0]
    return size if isinstance(size, int) else None


def _processor(source: str, side: int | None, *, required: bool) -> tuple[Any, int | None]:
    """Load a folder's image processor for a side; return it and the side, or None twice."""
    try:
        processor: Any = AutoImageProcessor.from_pretrained(source, **OPTIONS)
    except Exception as error:  # no file, or none that this version reads
        if not required:
            return None, None
        raise DataError(
            f"{source} has no image processor (preprocessor_config.json) that transformers reads: "
            f"save it there by processor.save_pretrained ({' '.join(str(error).split())[:200]})"
        ) from error
    size = dict(processor.size)
    crop = (
        getattr(processor, "crop_size", None)
        if getattr(processor, "do_center_crop", False)
        else None
    )
    square = dict(crop) if crop else size
    own = square.get("height")
    if own is None or own != square.get("width"):
        raise UnsupportedModelError(
            f"the image processor of {source} makes images of {square}, and a plan is for squares "
            "of one size: build the model by transformers and call elip_plugin.apply(model)"
        )
    if side is None or side == own:
        return processor, own
    changed: dict[str, Any] = {
        "size": {k: round(v * side / own) for k, v in size.items() if v is not None}
    }
    if crop:
        changed["crop_size"] = {"height": side, "width": side}
    return AutoImageProcessor.from_pretrained(source, **OPTIONS, **changed), side


def _preprocess(processor: Any, source: str, picture: Any) -> Tensor:
    if processor is None:
        raise DataError(
            f"{source} has no preprocessor_config.json, so how pictures become images is not "
            "known: save it there by processor.save_pretrained"
        )
    image: Tensor = processor(images=picture, return_tensors="pt")["pixel_values"][0]
    return image


def _save(processor: Any, folder: Path) -> None:
    if processor is not None:
        processor.save_pretrained(folder)


def _checkpoint(model: Any) -> None:
    model.gradient_checkpointing_enable({"use_reentrant": False})


def encode(model: Any, images: Tensor, prefix: int) -> Tensor:
    """Encode images into what the model pools.

    Args:
        model: The model.
        images: Images [B, 3, side, side].
        prefix: Its number of prefix tokens.

    Returns:
        Features [B, E]: of a model of images and texts those of its images; else its pooled
        output; else the first token of a tower that has one, or the mean of the patches.
    """
    if hasattr(model, "get_image_features"):
        output = model.get_image_features(pixel_values=images)
    else:
        output = model(pixel_values=images)
    if isinstance(output, Tensor):
        return output
    pooled: Tensor | None = getattr(output, "pooler_output", None)
    if pooled is not None:
        return pooled
    tokens: Tensor = output.last_hidden_state
    return tokens[:, 0] if prefix else tokens.mean(dim=1)
