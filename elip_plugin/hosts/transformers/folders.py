"""Models of transformers and their image processors, from folders of `save_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from elip_plugin.errors import DataError, UnsupportedModelError
from elip_plugin.hosts.building import reading

OPTIONS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Nothing is downloaded, and no code of a folder is run."""

POOLER = "pooler."
"""Names of the weights of what many families pool by, which many published folders lack."""


def check_folder(folder: str) -> None:
    """Refuse a checkpoint that is no folder."""
    if not Path(folder).is_dir():
        raise DataError(
            f"checkpoint {folder!r} is no folder; transformers' are folders of save_pretrained"
        )


def config_of(folder: str) -> Any:
    """Read a folder's config; UnsupportedModelError for one that transformers does not know."""
    try:
        return AutoConfig.from_pretrained(folder, **OPTIONS)
    except Exception as error:  # an unknown type, code of its own, a broken file
        reason = " ".join(str(error).split())[:200]
        raise UnsupportedModelError(
            f"{folder} holds no model that this version of transformers builds: {reason}"
        ) from error


def build(config: Any, folder: str, cls: Any = AutoModel) -> Any:
    """Build a model with random weights.

    Args:
        config: Its config.
        folder: Where that is from.
        cls: Its class; `AutoModel` for the one of its family.

    Returns:
        The model. UnsupportedModelError if the family has none.
    """
    if cls is not AutoModel:
        return cls(config)
    try:
        return AutoModel.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise UnsupportedModelError(
            f"transformers builds no model from {folder}: {' '.join(str(error).split())[:200]}"
        ) from error


def load(checkpoint: str, cls: Any = AutoModel) -> Any:
    """Load a model with all its weights, in float32; DataError if some are missing or broken."""
    with reading(checkpoint, "transformers", lambda: build(config_of(checkpoint), checkpoint, cls)):
        model, missing = _from_pretrained(checkpoint, cls)
        if missing and all(name.startswith(POOLER) for name in missing):
            # Else its features would be what random weights make of the class token.
            model, missing = _from_pretrained(checkpoint, cls, add_pooling_layer=False)
    if missing:
        raise DataError(
            f"checkpoint {checkpoint!r} lacks {len(missing)} of the model's weights, e.g. "
            f"{missing[:3]}"
        )
    return model


def _from_pretrained(checkpoint: str, cls: Any, **options: Any) -> tuple[Any, list[str]]:
    model, info = cls.from_pretrained(
        checkpoint, output_loading_info=True, dtype=torch.float32, **OPTIONS, **options
    )
    return model, sorted(info["missing_keys"])


def resize(config: Any, image_size: int) -> None:
    """Make a config one for images of another size, where it names a size."""
    part: Any = getattr(config, "vision_config", config)
    if hasattr(part, "image_size"):
        part.image_size = image_size


def side_of(config: Any) -> int | None:
    """Return the side that a config names; None if it names none, or unequal ones."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if isinstance(size, (list, tuple)) and len(set(size)) == 1:
        size = size[0]
    return size if isinstance(size, int) else None


def processor_of(folder: str, side: int | None, *, required: bool) -> tuple[Any, int | None]:
    """Load a folder's image processor.

    Args:
        folder: The folder.
        side: Pixels of a side of the images that it shall make; None for its own.
        required: Whether a folder without one is refused.

    Returns:
        The processor and the side; None twice where there is none.

    Raises:
        DataError: If there is none, or none that this version of transformers reads.
        UnsupportedModelError: If its images are no squares of one size.
    """
    try:
        processor: Any = AutoImageProcessor.from_pretrained(folder, **OPTIONS)
    except Exception as error:  # no file, or none that this version reads
        if not required:
            return None, None
        raise DataError(
            f"{folder} has no image processor (preprocessor_config.json) that transformers reads: "
            f"save it there by processor.save_pretrained ({' '.join(str(error).split())[:200]})"
        ) from error
    size = dict(processor.size)
    crop = getattr(processor, "do_center_crop", False) and getattr(processor, "crop_size", None)
    square = dict(crop) if crop else size
    own = square.get("height")
    if own is None or own != square.get("width"):
        raise UnsupportedModelError(
            f"the image processor of {folder} makes images of {square}, and a plan is for squares "
            "of one size: build the model by transformers and call elip_plugin.apply(model)"
        )
    if side is None or side == own:
        return processor, own
    changed: dict[str, Any] = {
        "size": {k: round(v * side / own) for k, v in size.items() if v is not None}
    }
    if crop:
        changed["crop_size"] = {"height": side, "width": side}
    return AutoImageProcessor.from_pretrained(folder, **OPTIONS, **changed), side


def normalization(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what a processor subtracts per color and then divides by; 0 and 1 without one."""
    mean, std = (getattr(processor, f"image_{each}", None) for each in ("mean", "std"))
    return tuple(mean or (0.0,) * 3), tuple(std or (1.0,) * 3)


def preprocess(processor: Any, folder: str, picture: Any) -> Tensor:
    """Turn a Pillow image in RGB into an image [3, side, side]; DataError without a processor."""
    if processor is None:
        raise DataError(
            f"{folder} has no preprocessor_config.json, so how pictures become images is not "
            "known: save it there by processor.save_pretrained"
        )
    image: Tensor = processor(images=picture, return_tensors="pt")["pixel_values"][0]
    return image


def save_processor(processor: Any, folder: Path) -> None:
    """Write a folder's image processor, if it has one."""
    if processor is not None:
        processor.save_pretrained(folder)
