"""The line that says what something is about: model, plan, evaluation, weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from elip_plugin.config import PRESETS, ElipConfig
from elip_plugin.hosts.base import HostModel
from elip_plugin.patching.install import find_pruner

RANDOM = "random weights"
"""What `HostModel.weights` says where nothing was read."""

EVALUATION = {
    "full": "evaluation not pruned",
    "image": "evaluation pruned",
    "text": "evaluation pruned by texts",
}


def label_of(host_model: HostModel, *, with_plan: bool = True) -> str:
    """Say what numbers, a picture or a file are about.

    Args:
        host_model: The model, pruned.
        with_plan: Whether it is about the model's plan; else each part names its own.

    Returns:
        Model, plan, whether evaluation is pruned, and weights, in one line.
    """
    parts = [host_model.name]
    if with_plan:
        config = find_pruner(host_model.model).config
        parts += [f"plan {plan_name(config)}", EVALUATION[config.eval_mode]]
    return ", ".join([*parts, f"weights {weights_of(host_model)}"])


def weights_of(host_model: HostModel) -> str:
    """Return the weights' tag or file's name, "random", or "none" of a model of shapes alone."""
    if next(host_model.model.parameters()).is_meta:
        return "none"
    weights = str(host_model.weights)
    if weights == RANDOM:
        return "random"
    return Path(weights).name if Path(weights).exists() else weights


def plan_name(config: ElipConfig) -> str:
    """Name a plan by its preset, with what differs from that; what evaluation does is left out.

    Args:
        config: The plan, however it was given.

    Returns:
        Such as "half", or "half with keep 0.8".
    """
    changes = [
        (_changes(config, preset), preset.eval_mode != config.eval_mode, name)
        for name, preset in PRESETS.items()
    ]
    fewest, _, name = min(changes, key=lambda change: (len(change[0]), change[1]))
    return f"{name} with {', '.join(fewest)}" if fewest else name


def _changes(config: ElipConfig, preset: ElipConfig) -> list[str]:
    """List what a plan has that a preset has not, a reducer and a stage as what weighs most."""
    made = []
    ours, theirs = config.to_mapping(), preset.to_mapping()
    for key in (key for key in ours if key not in ("stages", "eval_mode")):
        if ours[key] != theirs[key]:
            made.append(f"{key} {_short(ours[key])}")
    if config.stages != preset.stages:
        made.append("keep " + ",".join(f"{stage.keep:g}" for stage in config.stages))
        places = [[replace(s, keep=1.0) for s in each.stages] for each in (config, preset)]
        if places[0] != places[1]:
            made.append("stages " + _short([stage.block for stage in config.stages]))
    return made


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ":".join(str(part) for part in value.values())
    return ",".join(map(str, value)) if isinstance(value, list) else f"{value}"
