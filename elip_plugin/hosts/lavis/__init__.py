"""LAVIS: its vision tower, `lavis.models.vit.VisionTransformer`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from elip_plugin.hosts.lavis.tower import patch_tower as patch
from elip_plugin.pruner import Pruner
from elip_plugin.registry import Variant

__all__ = ["patch", "pruner_of", "register", "to_guide", "variants"]


def pruner_of(module: Any) -> Pruner:
    """Find the pruner of a patched tower.

    Args:
        module: A patched `VisionTransformer`.

    Returns:
        Its pruner.
    """
    pruner: Pruner = module.blocks[0].elip
    return pruner


def to_guide(module: Any, features: Tensor) -> Tensor:
    """Take a ready guide for the tower.

    Args:
        module: A patched `VisionTransformer`.
        features: The guide [B, D], for ALBEF and BLIP the text encoder's class token.

    Returns:
        The guide, detached.
    """
    return features.detach()


def register() -> None:
    """Do nothing: no LAVIS model is offered by name yet."""


def variants() -> dict[str, Variant]:
    """List the names this host offers.

    Returns:
        None so far.
    """
    return {}
