"""Building models that embed pictures by name, with all that planning and measuring need."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

import torch

from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError, UnsupportedModelError
from elip_plugin.hosts.anyvit import PRESET
from elip_plugin.hosts.anyvit.consumer import without_weights
from elip_plugin.hosts.anyvit.describe import describe
from elip_plugin.hosts.anyvit.image_model import ImageModel, Library, no_texts
from elip_plugin.hosts.anyvit.names import INSTALL
from elip_plugin.hosts.building import seeded
from elip_plugin.patching.install import install
from elip_plugin.patching.monkeypatch import silenced


def create(
    name: str,
    *,
    config: ElipConfig | None = None,
    checkpoint: str = "",
    image_size: int | None = None,
    device: str = "cpu",
) -> ImageModel:
    """Build a pruned model; see `Host.create`.

    Args:
        name: `hf:FOLDER`, `timm:NAME` or `torchvision:NAME`.
        config: What to prune; None for the preset `embed`.
        checkpoint: A folder of `save_pretrained` for transformers, else a file of weights; "" for
            random ones.
        image_size: Pixels of a side; None for what the model's preprocessing gives.
        device: Where to build it. Its blocks are checked by numbers on the CPU first, so "meta"
            takes as long.

    Returns:
        The model. UnsupportedModelError if it cannot be pruned, DataError if the checkpoint cannot
        be read, or does not fit.
    """
    if image_size is not None and image_size < 1:
        raise ConfigError(f"image_size must be 1 or more pixels, got {image_size}")
    kind, _, base = name.partition(":")
    load: Callable[[str, str, int | None], Library]
    load = import_module(f"{__package__}.of_{INSTALL[kind][0]}").load
    with seeded(), silenced():
        library = load(base, checkpoint, image_size)
    model = library.model.eval()
    check_features(name, library)
    described = describe(model, image_size=library.side)
    description = replace(described, no_text_guide=no_texts(name))
    tower = description.tower
    path = next(path for path, module in model.named_modules() if module is tower.module)
    install(description, ElipConfig.preset(PRESET) if config is None else config)
    side = math.isqrt(tower.num_patches)
    return ImageModel(
        name,
        model.to(device),
        (side, side),
        library.mean,
        library.std,
        checkpoint or "random weights",
        has_text_tower=False,
        library=library,
        description=description,
        tower_path=path,
    )


def check_features(name: str, library: Library) -> None:
    """Refuse a model that does not make one feature of each image, before anything is searched.

    Args:
        name: Its name.
        library: The model, of which a copy without weights runs.

    Raises:
        UnsupportedModelError: If it does not run on images alone, or gives tokens or maps.
    """
    kind, count = type(library.model).__name__, 2
    try:
        with torch.no_grad(), torch.device("meta"):
            images = torch.zeros(count, 3, library.side, library.side)
            shape = tuple(library.encode(without_weights(library.model), images, 1).shape)
    except Exception as error:  # of as many kinds as there are models
        raise UnsupportedModelError(
            f"{name} is a {kind}, which gives no features for images of {library.side} pixels "
            f"alone ({type(error).__name__}: {error}): only models that embed pictures have names"
        ) from error
    if len(shape) != 2 or shape[0] != count:
        raise UnsupportedModelError(
            f"{name} is a {kind}, which gives {shape} for {count} images, and not a feature each: "
            "only models that embed pictures have names"
        )
