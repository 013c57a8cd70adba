"""LAVIS: `elip_X` for each ALBEF, BLIP and CLIP arch X."""

from __future__ import annotations

from typing import Any

import lavis  # noqa: F401  first of all: registering with it needs all of it
from torch import nn

from elip_plugin.config import ElipConfig
from elip_plugin.hosts.lavis.models import MODELS
from elip_plugin.hosts.lavis.patch import patch_model, pruner_of, to_guide
from elip_plugin.hosts.lavis.register import register, variants
from elip_plugin.hosts.lavis.tower import patch_tower
from elip_plugin.pruner import Pruner
from elip_plugin.surgery import choose

__all__ = ["patch", "preview", "pruner_of", "register", "subject", "to_guide", "trial", "variants"]


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


def subject(name: str, **options: Any) -> Any:
    """Make a model and a batch to measure; see `bench.py` beside this file.

    Args:
        name: A model's name.
        **options: As there.

    Returns:
        An `elip_plugin.measure.subject.Subject`.
    """
    from elip_plugin.hosts.lavis import bench  # not needed for anything but measuring

    return bench.subject(name, **options)


def preview(name: str, config: ElipConfig | None, image_size: int | None) -> Pruner:
    """Prune a model that has shapes but no weights; see `shapes.py` beside this file.

    Args:
        name: A model's name.
        config: What to prune; None for what the name says.
        image_size: Pixels of a side; None for the model's own.

    Returns:
        The pruner of its tower.
    """
    from elip_plugin.hosts.lavis import shapes  # not needed for anything but previews

    return shapes.preview(name, config, image_size)


def trial(*given: Any) -> Any:
    """Make a small ALBEF or BLIP to train and score; see `scoreboard.py` beside this file.

    Args:
        *given: As there.

    Returns:
        An `elip_plugin.quality.trial.Trial`.
    """
    from elip_plugin.hosts.lavis.scoreboard import PretrainTrial  # for the scoreboard alone

    return PretrainTrial(*given)
