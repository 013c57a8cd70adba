"""What pruning would do to a LAVIS model: its tower alone is built."""

from __future__ import annotations

from typing import Any

import torch
from lavis.models import CLIP, VisionTransformerEncoder
from lavis.models.clip_models import model as clip_models
from omegaconf import OmegaConf

from elip_plugin.config import ElipConfig
from elip_plugin.hosts.lavis.clip_towers import patch_clip_tower
from elip_plugin.hosts.lavis.models import SMALL
from elip_plugin.hosts.lavis.names import known_arch
from elip_plugin.hosts.lavis.runtime.offline import small_tower
from elip_plugin.hosts.lavis.towers import patch_tower
from elip_plugin.patching.pruner import Pruner


def preview(name: str, config: ElipConfig | None, image_size: int | None) -> Pruner:
    """Prune the tower of an arch, built alone.

    Args:
        name: An arch, with or without our prefix; with a model type after a colon, such as
            "elip_blip_vqa:vqav2", else its first type.
        config: What to prune; None for the arch's default.
        image_size: Pixels of a side; None for the type's own.

    Returns:
        The pruner of its tower.

    Raises:
        UnknownModelError: If there is no such arch or type.
    """
    twin, kind = known_arch(name)
    cfg = OmegaConf.load(twin.default_config_path(kind)).model
    if image_size is not None:
        cfg.image_size = image_size
    weight = 0.0 if twin.guided_by == "nothing" else None
    config = config or ElipConfig.from_mapping(
        {"preset": "paper"} if weight is None else {"preset": "paper", "text_weight": weight}
    )
    if twin.replaces is CLIP:
        sizes: Any = clip_models._MODEL_CONFIGS.get(kind)
        if kind == SMALL:
            sizes = OmegaConf.to_container(cfg.clip)
        with torch.device("meta"):
            return patch_clip_tower(CLIP(**sizes).visual, config)
    # LAVIS reads numbers from tensors while it builds its ViT, so this one has weights.
    if "vit" in cfg:
        return patch_tower(small_tower(VisionTransformerEncoder, cfg, cfg.vit), config)
    return patch_tower(VisionTransformerEncoder.from_config(cfg), config)
