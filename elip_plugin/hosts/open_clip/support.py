"""Which of OpenCLIP's model configs can be pruned, and why the others cannot."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from elip_plugin.config import PAPER, PRESETS

SUPPORTED = (
    "OpenCLIP's native ViT (class-token, average or attentional pooling) and timm's "
    "VisionTransformer and Eva (EVA01, EVA02, PE-Core; token, average or map pooling) are supported"
)

CONVOLUTIONAL = "has no ViT blocks: its stages are convolutional or mixed, and their grids fixed"
TIMM_REASONS = {
    "swin_": "attends within windows of a full grid, which pruning would break",
    "convnext_": CONVOLUTIONAL,
    "fastvit_": CONVOLUTIONAL,
    "vitamin_": CONVOLUTIONAL,
    "vit_relpos_": "adds a bias by relative positions to its attention",
    "naflexvit_": "gives each image its own number of patches, and a mask for the rest",
}

SEVERAL_CONVOLUTIONS = "vit_base_mci_"
"""How the names in timm begin of ViTs that embed patches by several convolutions, and not one."""


def why_not(config: Mapping[str, Any], preset: str = PAPER) -> str | None:
    """Return why a model config cannot be pruned, as a clause about its tower; None if it can."""
    return _why_not_at_all(config) or _why_not_by(preset, config["vision_cfg"])


def _why_not_by(preset: str, vision: Mapping[str, Any]) -> str | None:
    name, needed = str(vision.get("timm_model_name")), PRESETS[preset].reducer.needs
    if "patch_embed" not in needed or not name.startswith(SEVERAL_CONVOLUTIONS):
        return None
    return (
        f"embeds its patches by several convolutions, and preset {preset!r} needs one convolution: "
        "use another preset"
    )


def _why_not_at_all(config: Mapping[str, Any]) -> str | None:
    vision = config.get("vision_cfg")
    if vision is None:
        return "is missing: the model reads sound"
    if not isinstance(vision, Mapping):
        return f"is described by {vision!r}, not by a mapping"
    if "genlip_cfg" in config:
        return "is the text decoder itself, which reads patches and words in one sequence"
    name = vision.get("timm_model_name")
    if name:
        return _why_not_timm(name)
    if not isinstance(vision.get("layers", 12), int):
        return "is a ResNet, which has no tokens"
    if vision.get("attentional_pool") not in (None, False, True):
        return f"has two poolers ({vision['attentional_pool']}), which is not handled"
    pool = vision.get("pool_type", "tok")
    return None if pool in ("tok", "avg") else f"has pool_type {pool}, which gives no image feature"


def _why_not_timm(name: str) -> str | None:
    for prefix, reason in TIMM_REASONS.items():
        if name.startswith(prefix):
            return reason
    if not name.startswith(("vit_", "eva_", "eva02_")):
        return "is a timm model other than VisionTransformer and Eva"
    if not _has_timm_layers():
        return "needs timm 1.0 or later, and this environment has an older one"
    return None


def _has_timm_layers() -> bool:
    """Whether OpenCLIP can build timm towers here: LAVIS pins a timm that it cannot use."""
    try:
        return importlib.util.find_spec("timm.layers") is not None
    except ModuleNotFoundError:
        return False
