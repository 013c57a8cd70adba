"""What a training step of each variant costs, on average over its whole training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import elip_plugin
from benchmarks.quality import models
from benchmarks.quality.pairs import Pairs, batches
from benchmarks.quality.recipe import Recipe
from benchmarks.quality.results_log import renamed
from benchmarks.quality.timing import StepTime, time_steps
from benchmarks.quality.training import training_loss
from benchmarks.quality.variants import REFERENCE, VARIANTS, Variant
from elip_plugin import ElipConfig

STEPS = 1000
"""Number of parts into which a training is cut to find its phases."""

FULL, COARSE = "full", "coarse"
"""Names of an unpruned step, and of one on smaller images."""

SCHEDULES = ("warmup", "final_unpruned", "text_anneal")
WARMUP_LEVELS = 4
"""Levels of pruning below the target that a warm-up passes, no pruning included."""


def phases(name: str) -> dict[str, float]:
    """Compute which steps a training consists of.

    Args:
        name: A key of `VARIANTS`.

    Returns:
        Shares of the training by the name of a step: "full", "coarse", or a config in JSON.
    """
    variant = VARIANTS[name]
    config = variant.config
    found = Counter(_phase(variant, config, step / STEPS) for step in range(STEPS))
    return {phase: count / STEPS for phase, count in found.items()}


def _phase(variant: Variant, config: ElipConfig | None, share: float) -> str:
    if share < variant.coarse:
        return COARSE
    level = 0.0 if config is None else level_at(share, config)
    if level == 0:
        return FULL
    elip = {key: value for key, value in (variant.elip or {}).items() if key not in SCHEDULES}
    return _phase_name(elip, level)


def _phase_name(elip: Mapping[str, object] | None, level: float) -> str:
    return json.dumps({"elip": elip, "level": level}, sort_keys=True)


def level_at(share: float, config: ElipConfig) -> float:
    """Compute how much of the pruning is in force.

    Args:
        share: Share of the training that is done, 0 to 1.
        config: A configuration with `warmup` and `final_unpruned`.

    Returns:
        0 for all tokens, 1 for the config's own counts.
    """
    share += 1e-9  # 3 of 10 steps are 0.3 of a training, in binary too
    if config.final_unpruned > 0 and share >= 1 - config.final_unpruned:
        return 0.0
    if share >= config.warmup:
        return 1.0
    return int(WARMUP_LEVELS * share / config.warmup) / WARMUP_LEVELS


def layers(name: str, recipe: Recipe) -> float:
    """Compute which share of the token-layers a training runs through.

    Args:
        name: A key of `VARIANTS`.
        recipe: Sizes of the model.

    Returns:
        The share, on average over the training.
    """
    total, num_patches = 0.0, recipe.patches
    for phase, share in phases(name).items():
        if phase == FULL:
            total += share
        elif phase == COARSE:
            total += share * (num_patches * 9 // 16 + 1) / (num_patches + 1)
        else:
            plan = elip_plugin.plan(
                _config(phase), num_patches=num_patches, depth=recipe.depth, skip_idle=True
            )
            total += share * (1 - plan.removed)
    return total


def _config(phase: str) -> ElipConfig:
    """Return the config whose stages remove a phase's share of what they remove in the end."""
    given = json.loads(phase)
    config, level = ElipConfig.from_mapping(given["elip"]), given["level"]
    stages = tuple(replace(stage, keep=1 - level * (1 - stage.keep)) for stage in config.stages)
    return config if level == 1 else replace(config, stages=stages)


def time_phases(
    names: Iterable[str], recipe: Recipe, pairs: Pairs, rounds: int
) -> dict[str, StepTime]:
    """Time the steps of variants in turn, each on a model of its own.

    Args:
        names: Keys of `VARIANTS`.
        recipe: How to train.
        pairs: Where the batch comes from.
        rounds: How many rounds count.

    Returns:
        Times by the name of a step, relative to "full".
    """
    wanted = dict.fromkeys([FULL, *(phase for name in names for phase in phases(name))])
    images, which = next(batches(pairs, recipe.batch, 1, 0))
    steps: dict[str, Callable[[], None]] = {}
    for phase in wanted:
        torch.manual_seed(0)
        model = models.create(recipe, pairs, pairs)
        if phase not in (FULL, COARSE):
            elip_plugin.apply(model.model, _config(phase))
        variant = replace(VARIANTS[REFERENCE], coarse=float(phase == COARSE))
        optimizer = torch.optim.AdamW(model.model.parameters(), 1e-6)
        model.model.train()
        loss = partial(training_loss, model, variant, images, which, 0.0)
        steps[phase] = partial(_step, loss, optimizer)
    return time_steps(steps, rounds)


def _step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss())
    optimizer.step()


def read_ratios(path: Path) -> dict[str, float]:
    """Read the times of steps that the command wrote.

    Args:
        path: The JSON file; it need not exist.

    Returns:
        Times over that of an unpruned step, by the name of a step in `phases`.
    """
    if not path.exists():
        return {}
    ratios = {}
    for name, time in json.loads(path.read_text(encoding="utf-8"))["steps"].items():
        if name not in (FULL, COARSE):  # older files have older config keys
            given = json.loads(name)
            name = _phase_name(renamed(given["elip"]), given["level"])
        ratios[name] = time["ratio"]
    return ratios


def average(name: str, ratios: Mapping[str, float]) -> float | None:
    """Compute a variant's average step over its training.

    Args:
        name: A key of `VARIANTS`.
        ratios: Time of each step over that of an unpruned one.

    Returns:
        The average ratio; None if a step of it was not timed.
    """
    found = phases(name)
    if any(phase not in ratios for phase in found):
        return None
    return sum(share * ratios[phase] for phase, share in found.items())
