"""Building a twin from LAVIS' model section: offline, small and random if it says so."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from elip_plugin.errors import ConfigError
from elip_plugin.hosts.lavis.patch import patch_model
from elip_plugin.hosts.lavis.runtime.offline import construction
from elip_plugin.hosts.lavis.runtime.settings import read_settings
from elip_plugin.hosts.lavis_libraries import check

log = logging.getLogger("elip_plugin")


def from_config(twin: Any, cfg: Any) -> Any:
    """Build a pruned model.

    Args:
        twin: A class in `elip_plugin.hosts.lavis.models`.
        cfg: LAVIS' model section, with our keys beside its own: `elip`, and for a model that
            is small or needs no network `tokenizer`, `init`, `vit`, `bert` (ALBEF, BLIP) or
            `clip`; see `elip_plugin.hosts.lavis.runtime.settings`.

    Returns:
        The model.

    Raises:
        ConfigError: If our keys are at fault, or something could not be fetched.
        PlanError: If the plan does not fit the tower.
    """
    check()
    cfg = OmegaConf.create(dict(cfg) if isinstance(cfg, Mapping) else cfg)
    settings = read_settings(twin, cfg)
    # LAVIS would wrap the student's layers before it copies them into the momentum twin, and
    # the copies would run the student's weights. We wrap after the copy was made.
    checkpointing = bool(cfg.get("vit_grad_ckpt", False))
    with construction(settings, twin.replaces):
        base = OmegaConf.merge(cfg, {"vit_grad_ckpt": False})
        model = _clip(settings, cfg) if settings.clip else twin.replaces.from_config(base)
    pruner = patch_model(model, twin, settings.config)
    if checkpointing:
        _checkpoint(model.visual_encoder, int(cfg.get("vit_ckpt_layer", 0)))
    how = "by the image alone" if settings.config.text_weight == 0 else f"by the {twin.guided_by}"
    log.info("ELIP prunes the vision tower %s: %s", how, pruner.plan.summary())
    return model


def _clip(settings: Any, cfg: Any) -> Any:
    from lavis.models import CLIP

    model = CLIP(**settings.clip)
    if cfg.get("pretrained"):
        missing = model.load_checkpoint(cfg.pretrained).missing_keys
        if missing:
            raise ConfigError(
                f"pretrained: {cfg.pretrained} lacks {len(missing)} of the model's weights, e.g. "
                f"{missing[:3]}"
            )
    return model


def _checkpoint(tower: Any, last: int) -> None:
    """Checkpoint the attention and the MLP of the last blocks, as LAVIS does."""
    from fairscale.nn.checkpoint.checkpoint_activations import checkpoint_wrapper

    for block in tower.blocks[len(tower.blocks) - last :]:
        block.attn, block.mlp = checkpoint_wrapper(block.attn), checkpoint_wrapper(block.mlp)
