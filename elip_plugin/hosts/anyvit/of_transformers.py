"""Models of transformers from folders of `save_pretrained`, with their own image processors."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from elip_plugin.errors import UnsupportedModelError
from elip_plugin.hosts.anyvit.image_model import Library
from elip_plugin.hosts.transformers import folders


def load(folder: str, checkpoint: str, image_size: int | None) -> Library:
    """Build the model of a folder with a `config.json`; see `factory.create`.

    The side is by default what its image processor gives, or else its config.
    """
    source = checkpoint or folder
    folders.check_folder(source)
    config = folders.config_of(source)
    processor, side = folders.processor_of(source, image_size, required=bool(checkpoint))
    side = side or image_size or folders.side_of(config)
    if side is None:
        raise UnsupportedModelError(
            f"{source} has no image processor, and its config no image_size: give image_size"
        )
    if not checkpoint and image_size is not None:
        # Random positions may as well be of the size that is asked for; trained ones stay, and the
        # model's own forward says whether it takes other images.
        folders.resize(config, image_size)
    return Library(
        folders.load(checkpoint) if checkpoint else folders.build(config, source),
        side,
        partial(folders.preprocess, processor, source),
        *folders.normalization(processor),
        encode,
        partial(folders.save_processor, processor),
        save_weights=lambda model, folder: model.save_pretrained(folder),
    )


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
