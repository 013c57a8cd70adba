"""OpenCLIP: `elip-X` and `elip-fast-X` for every model X whose ViT can be pruned."""

from __future__ import annotations

from typing import Any

from torch import nn

from elip_plugin.config import ElipConfig
from elip_plugin.hosts.open_clip.models import patch_model, patch_tower, pruner_of, to_guide
from elip_plugin.hosts.open_clip.register import register, variants
from elip_plugin.pruner import Pruner

__all__ = ["patch", "preview", "pruner_of", "register", "subject", "to_guide", "trial", "variants"]


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


def subject(name: str, **options: Any) -> Any:
    """Make a model and a batch to measure; see `bench.py` beside this file.

    Args:
        name: A model's name.
        **options: As there.

    Returns:
        An `elip_plugin.measure.subject.Subject`.
    """
    from elip_plugin.hosts.open_clip import bench  # not needed for anything but measuring

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
    from elip_plugin.hosts.open_clip import shapes  # not needed for anything but previews

    return shapes.preview(name, config, image_size)


def trial(*given: Any) -> Any:
    """Make a small CLIP to train and score; see `scoreboard.py` beside this file.

    Args:
        *given: As there.

    Returns:
        An `elip_plugin.quality.trial.Trial`.
    """
    from elip_plugin.hosts.open_clip.scoreboard import ClipTrial  # for the scoreboard alone

    return ClipTrial(*given)
