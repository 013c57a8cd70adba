"""OpenCLIP's models to look through."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import open_clip
import torch
from open_clip.model import get_model_preprocess_cfg
from torch import Tensor

from elip_plugin.api import apply
from elip_plugin.config import DEFAULT_PRESET, ElipConfig
from elip_plugin.errors import DataError
from elip_plugin.hosts.open_clip.names import PREFIXES, known_base
from elip_plugin.patching.monkeypatch import silenced
from elip_plugin.visualize.sight import Sight


def sight(name: str, checkpoint: str, config: ElipConfig | None) -> Sight:
    """Make a model to look through.

    Args:
        name: A model name, with or without our prefix.
        checkpoint: A file of weights, or a tag of OpenCLIP's; "" for random weights.
        config: What to prune; None for what the name says.

    Returns:
        The model with its preparation.

    Raises:
        UnknownModelError: If there is no such model.
        DataError: If the checkpoint cannot be read.
    """
    base = known_base(name)
    torch.manual_seed(0)
    try:
        # Without a checkpoint the weights are random, which the caller says himself.
        with nullcontext() if checkpoint else silenced():
            made = open_clip.create_model_and_transforms(base, pretrained=checkpoint or None)
    except Exception as error:  # a file that is none, a tag that is none, a download that fails
        raise DataError(f"checkpoint {checkpoint!r} of {base} cannot be read: {error}") from error
    model: Any = made[0].eval()
    preset = PREFIXES.get(name.removesuffix(base), DEFAULT_PRESET)
    apply(model, config or ElipConfig.preset(preset))
    tokenizer = open_clip.get_tokenizer(base)

    def encode_text(text: str) -> Tensor:
        features: Tensor = model.encode_text(tokenizer([text]))
        return features

    trunk = getattr(model.visual, "trunk", None)
    grid = model.visual.grid_size if trunk is None else trunk.patch_embed.grid_size
    cfg = get_model_preprocess_cfg(model)
    return Sight(
        name=name,
        model=model,
        prepare=made[2],
        encode_text=encode_text,
        encode_image=model.encode_image,
        grid=(grid[0], grid[1]),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        weights=checkpoint or "random weights",
    )
