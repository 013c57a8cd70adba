"""OpenCLIP: `elip-X` and `elip-fast-X` for every model X whose ViT can be pruned."""

from __future__ import annotations

from typing import Any

from torch import nn

from elip_plugin.config import ElipConfig
from elip_plugin.hosts.late import late
from elip_plugin.hosts.open_clip.models import patch_model, patch_tower, pruner_of, to_guide
from elip_plugin.hosts.open_clip.names import register, variants
from elip_plugin.patching.pruner import Pruner

__all__ = ["patch", "pruner_of", "register", "to_guide", "variants"]


def patch(module: nn.Module, config: ElipConfig) -> Pruner:
    """Patch an OpenCLIP model or a bare vision tower in place.

    Args:
        module: The model or tower.
        config: What to prune.

    Returns:
        The pruner.
    """
    target: Any = module
    return patch_model(target, config) if hasattr(module, "visual") else patch_tower(target, config)


__getattr__ = late(__name__, subject="bench", preview="shapes", trial="scoreboard", sight="seeing")
