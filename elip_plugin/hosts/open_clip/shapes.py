"""What pruning would do to an OpenCLIP model, without building its weights."""

from __future__ import annotations

from typing import Any

import open_clip
import torch

from elip_plugin.config import DEFAULT_PRESET, ElipConfig
from elip_plugin.hosts.open_clip.models import patch_model
from elip_plugin.hosts.open_clip.names import PREFIXES, known_base
from elip_plugin.patching.monkeypatch import silenced
from elip_plugin.patching.pruner import Pruner


def preview(name: str, config: ElipConfig | None, image_size: int | None) -> Pruner:
    """Prune a model that has shapes but no weights.

    Args:
        name: A model name, with or without our prefix.
        config: What to prune; None for what the prefix says.
        image_size: Pixels of a side; None for the model's own.

    Returns:
        The pruner of its tower.

    Raises:
        UnknownModelError: If there is no such model.
    """
    base = known_base(name)
    prefix = name.removesuffix(base)
    options: dict[str, Any] = {} if image_size is None else {"force_image_size": image_size}
    with torch.device("meta"), silenced():  # OpenCLIP warns that there are no weights
        model = open_clip.create_model(base, device="meta", **options)
    return patch_model(model, config or ElipConfig.preset(PREFIXES.get(prefix, DEFAULT_PRESET)))
