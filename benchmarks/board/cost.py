"""What a training costs: counted operations of both towers, and measured time of its steps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import elip_plugin
from benchmarks.board.model import CONTEXT, StudyModel
from benchmarks.board.pairs import Pairs, batches
from benchmarks.board.recipe import BoardRecipe
from benchmarks.board.timing import StepTime, time_steps
from benchmarks.board.training import training_loss
from benchmarks.board.variants import REFERENCE, ROUNDING, VARIANTS, Variant
from elip_plugin import ElipConfig
from elip_plugin.reducers import block_macs

PARTS = 1000
"""Number of parts into which a training is cut to find its phases."""

FULL, SMALL = "full", "small"
"""Names of an unpruned step, and of one on pictures of half the side."""

SCHEDULES = ("warmup", "final_unpruned", "text_anneal")
WARMUP_LEVELS = 4
"""Levels of pruning below the target that a warm-up passes, no pruning included."""

MLP = 4.0


class Tower(NamedTuple):
    """Sizes of a tower: tokens, width, blocks, and the MLP's width over its own."""

    tokens: int
    width: int
    depth: int
    mlp: float = MLP

    def operations(self) -> float:
        """Count a forward with all tokens in every block, in multiply-adds."""
        return self.depth * block_macs(self.tokens, self.width, self.mlp)


def phases(variant: Variant) -> dict[str, float]:
    """Compute which steps a training consists of.

    Args:
        variant: How to train.

    Returns:
        Shares of the training by the name of a step: `FULL`, `SMALL`, or a config in JSON.
    """
    found = Counter(_phase(variant, part / PARTS) for part in range(PARTS))
    return {phase: count / PARTS for phase, count in found.items()}


def _phase(variant: Variant, done: float) -> str:
    if done < variant.small_until:
        return SMALL
    config = variant.config_at(done)
    level = 0.0 if config is None else level_at(done, config)
    if level == 0:
        return FULL
    elip = variant.elip_at(done) or {}
    elip = {key: value for key, value in elip.items() if key not in SCHEDULES}
    return json.dumps({"elip": elip, "level": level}, sort_keys=True)


def level_at(done: float, config: ElipConfig) -> float:
    """Compute how much of the pruning is in force.

    Args:
        done: Share of the training that is done, 0 to 1.
        config: A configuration with `warmup` and `final_unpruned`.

    Returns:
        0 for all tokens, 1 for the config's own counts.
    """
    done += ROUNDING
    if config.final_unpruned > 0 and done >= 1 - config.final_unpruned:
        return 0.0
    if done >= config.warmup:
        return 1.0
    return int(WARMUP_LEVELS * done / config.warmup) / WARMUP_LEVELS


def operations(variant: Variant, recipe: BoardRecipe) -> float:
    """Count the average training step of a variant, its text tower included.

    Args:
        variant: How to train.
        recipe: Sizes of the model.

    Returns:
        Multiply-adds relative to those of an unpruned step.
    """
    vision = Tower(recipe.patches + 1, recipe.width, recipe.depth)
    return count(variant, vision, Tower(CONTEXT, recipe.width, recipe.text_depth))


def count(variant: Variant, vision: Tower, text: Tower) -> float:
    """Count the average training step of a variant on towers of any size.

    Args:
        variant: How to train.
        vision: The vision tower, with one class token.
        text: The text tower.

    Returns:
        Multiply-adds of all blocks relative to those of an unpruned step.
    """
    full, texts = vision.operations(), text.operations()
    patches, images = vision.tokens - 1, 0.0
    for phase, share in phases(variant).items():
        if phase == FULL:
            images += share * full
        elif phase == SMALL:
            images += share * vision._replace(tokens=patches // 4 + 1).operations()
        else:
            plan = elip_plugin.plan(
                _config(phase), num_patches=patches, depth=vision.depth, skip_idle=True
            )
            images += share * full * plan.train_cost(vision.width, vision.mlp)
    return (images + texts) / (full + texts)


def _config(phase: str) -> ElipConfig:
    """Return the config whose stages remove a phase's share of what they remove in the end."""
    given = json.loads(phase)
    config, level = ElipConfig.from_mapping(given["elip"]), given["level"]
    stages = tuple(replace(stage, keep=1 - level * (1 - stage.keep)) for stage in config.stages)
    return config if level == 1 else replace(config, stages=stages)


def steps_of(variant: Variant, recipe: BoardRecipe, budget: str, unpruned: int) -> int:
    """Count the steps of a training.

    Args:
        variant: How to train.
        recipe: Sizes of the model.
        budget: "steps", as many as unpruned training; "operations", as many as fit into its
            counted operations.
        unpruned: Steps of unpruned training.

    Returns:
        The steps.
    """
    return unpruned if budget == "steps" else round(unpruned / operations(variant, recipe))


def time_phases(
    names: Iterable[str], recipe: BoardRecipe, pairs: Pairs, rounds: int
) -> dict[str, StepTime]:
    """Time the steps of variants in turn, each on a model of its own.

    Args:
        names: Keys of `VARIANTS`.
        recipe: How to train.
        pairs: Where the batch comes from.
        rounds: How many rounds count.

    Returns:
        Times by the name of a step, relative to `FULL`.
    """
    wanted = dict.fromkeys([FULL, *(phase for name in names for phase in phases(VARIANTS[name]))])
    images, which = next(batches(pairs, recipe.batch, 1, 0))
    steps: dict[str, Callable[[], None]] = {}
    for phase in wanted:
        torch.manual_seed(0)
        model = StudyModel(recipe, pairs.captions)
        if phase not in (FULL, SMALL):
            elip_plugin.apply(model.model, _config(phase))
        variant = replace(VARIANTS[REFERENCE], small_until=float(phase == SMALL))
        optimizer = torch.optim.AdamW(model.model.parameters(), 1e-6)
        model.model.train()
        tokens = model.tokenize([pairs.captions[row] for row in which.tolist()])
        loss = partial(training_loss, model, variant, images, tokens, 0.0)
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
        Median ratios to an unpruned step, by the name of the step.
    """
    if not path.exists():
        return {}
    return {name: time["ratio"] for name, time in json.loads(path.read_text())["steps"].items()}


def average(variant: Variant, ratios: Mapping[str, float]) -> float | None:
    """Compute the measured time of a variant's average step.

    Args:
        variant: How to train.
        ratios: From `read_ratios`.

    Returns:
        Relative to unpruned training; None if a phase of it was not timed.
    """
    shares = phases(variant)
    if not shares.keys() <= ratios.keys():
        return None
    return sum(share * ratios[phase] for phase, share in shares.items())
