"""Build a pruned model from LAVIS' model section."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from elip_plugin.config import ElipConfig
from elip_plugin.hosts.building import say_recommended
from elip_plugin.hosts.lavis.compat import fixes
from elip_plugin.hosts.lavis.compat.offline import build_base, checkpoint_blocks, read_settings
from elip_plugin.hosts.lavis.describe import describe_model
from elip_plugin.patching.install import install
from elip_plugin.patching.swap import swap_for

log = logging.getLogger("elip_plugin")

SECTION = "elip"
"""The key of a model section that says what to prune."""


def from_config(patched: Any, cfg: Any, config: ElipConfig | None = None) -> Any:
    """Build a pruned model of a class in `models` from LAVIS' model section.

    The section has our keys beside its own: `elip`, unless a config is given, and for a model that
    is small or needs no network those of `elip_plugin.hosts.lavis.compat.offline`.

    Raises ConfigError if our keys are at fault, or something could not be fetched, and PlanError if
    the plan does not fit the tower.
    """
    fixes.check_libraries()
    fixes.apply("model")
    cfg = OmegaConf.create(dict(cfg) if isinstance(cfg, Mapping) else cfg)
    settings = read_settings(cfg, patched.replaces, others=[SECTION])
    config = config or pruning_of(patched, cfg)
    model = build_base(patched.replaces, cfg, settings)
    pruner = install(describe_model(model, swap_for(model, {patched.replaces: patched})), config)
    if cfg.get("vit_grad_ckpt", False):
        checkpoint_blocks(model.visual_encoder, int(cfg.get("vit_ckpt_layer", 0)))
    how = "image alone" if config.text_weight == 0 else patched.guided_by
    log.info("ELIP prunes the vision tower by the %s: %s", how, pruner.plan.summary())
    return model


def pruning_of(patched: Any, cfg: DictConfig) -> ElipConfig:
    """Return what a model section prunes; where it is silent, what its class does by default."""
    given = OmegaConf.to_container(cfg, resolve=True).get(SECTION)  # type: ignore[union-attr]
    default = patched.default
    if given is None and isinstance(default, str):
        say_recommended("an arch elip_X without `elip`", "elip: {preset: half}")
    if patched.guided_by == "nothing":
        given, default = _by_the_image(given), _by_the_image(default)
    return ElipConfig.from_mapping(given, default=default)


def _by_the_image(pruning: Any) -> dict[str, Any]:
    """Let the image alone choose where that is not said, for a model that nothing guides."""
    pruning = {"preset": pruning} if isinstance(pruning, str) else dict(pruning or {})
    return {"text_weight": 0.0, **pruning}
