"""LAVIS: `elip_X` for each ALBEF, BLIP and CLIP arch X."""

from __future__ import annotations

from typing import Any

import lavis  # noqa: F401  first of all: registering with it needs all of it
from torch import nn

from elip_plugin.config import ElipConfig
from elip_plugin.hosts.late import late
from elip_plugin.hosts.lavis.models import MODELS
from elip_plugin.hosts.lavis.names import register, variants
from elip_plugin.hosts.lavis.patch import patch_model, pruner_of, to_guide
from elip_plugin.hosts.lavis.towers import patch_tower
from elip_plugin.patching.pruner import Pruner
from elip_plugin.patching.swap import choose

__all__ = ["patch", "pruner_of", "register", "to_guide", "variants"]


def patch(module: nn.Module, config: ElipConfig) -> Pruner:
    """Patch a LAVIS model, or a bare vision tower of ALBEF and BLIP, in place.

    Args:
        module: The model or tower.
        config: What to prune.

    Returns:
        The pruner.
    """
    target: Any = module
    if hasattr(module, "visual_encoder") or hasattr(module, "visual"):
        return patch_model(target, choose(module, MODELS), config)
    return patch_tower(target, config)


__getattr__ = late(__name__, subject="bench", preview="shapes", trial="scoreboard", sight="seeing")
