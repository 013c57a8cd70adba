"""What a training step of each variant costs, on average over its whole training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch

import elip_plugin
from elip_plugin.config import SCHEDULES, ElipConfig
from elip_plugin.measure.steps import StepTimes, time_steps
from elip_plugin.measure.subject import stepped
from elip_plugin.patching.progress import config_at, level_at
from elip_plugin.planning import plan
from elip_plugin.quality import trial as trials
from elip_plugin.quality.pairs import Pairs, batches
from elip_plugin.quality.recipe import Recipe
from elip_plugin.quality.run import training_loss
from elip_plugin.quality.variants import REFERENCE, VARIANTS, Variant

STEPS = 1000
"""Into how many parts a training is cut to see its phases."""

FULL, COARSE = "full", "coarse"
"""Names of an unpruned step, and of one on smaller images."""


def phases(name: str) -> dict[str, float]:
    """Tell which steps a training consists of.

    Args:
        name: A key of `VARIANTS`.

    Returns:
        Shares of the training by the name of a step: "full", "coarse", or a config in JSON.
    """
    variant, config = VARIANTS[name], VARIANTS[name].config(STEPS)
    found = Counter(_phase(variant, config, step / STEPS) for step in range(STEPS))
    return {phase: count / STEPS for phase, count in found.items()}


def _phase(variant: Variant, config: ElipConfig | None, share: float) -> str:
    if share < variant.coarse:
        return COARSE
    level = 0.0 if config is None else level_at(share, config)
    if level == 0:
        return FULL
    elip = {key: value for key, value in (variant.elip or {}).items() if key not in SCHEDULES}
    return json.dumps({"elip": elip, "level": level}, sort_keys=True)


def layers(name: str, recipe: Recipe) -> float:
    """Tell which share of the token-layers a training runs through.

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
            made = plan(
                _config(phase, num_patches),
                num_patches=num_patches,
                depth=recipe.depth,
                skip_idle=True,
            )
            total += share * (1 - made.removed)
    return total


def _config(phase: str, num_patches: int) -> ElipConfig:
    given = json.loads(phase)
    config = ElipConfig.from_mapping(given["elip"])
    return config_at(given["level"], config, num_patches)


def time_phases(
    names: Iterable[str],
    recipe: Recipe,
    pairs: Pairs,
    rounds: int,
) -> dict[str, StepTimes]:
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
    steps: dict[str, Callable[[], object]] = {}
    for phase in wanted:
        torch.manual_seed(0)
        trial = trials.make(recipe.family, recipe, list(pairs.captions), [])
        if phase not in (FULL, COARSE):
            elip_plugin.apply(trial.model, _config(phase, recipe.patches))
        variant = replace(VARIANTS[REFERENCE], coarse=float(phase == COARSE))
        optimizer = torch.optim.AdamW(trial.model.parameters(), 1e-6)
        trial.model.train()
        loss = partial(training_loss, trial, variant, images, which, 0.0)
        steps[phase] = stepped(loss, optimizer)
    return time_steps(steps, rounds=rounds)


def average(name: str, ratios: Mapping[str, float]) -> float | None:
    """Average a variant's step over its training.

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
