"""Other plans for a pruned model: what they cost, and the weakest that reaches a speed-up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from elip_plugin.config import ElipConfig
from elip_plugin.errors import ConfigError, PlanError
from elip_plugin.patching.progress import level_at
from elip_plugin.patching.pruner import Pruner
from elip_plugin.planning import Plan, plan

STEPS, STRONGEST = 400, 2.0
"""Into how many strengths a search is cut, and the last: removing twice as much in each stage."""

PARTS = 1000
"""Into how many parts a training is cut to average its steps."""


def image_only(config: ElipConfig) -> ElipConfig:
    """Return a plan that prunes in evaluation, by the image alone: as an index is embedded."""
    try:
        return replace(config, eval_mode="image")
    except ConfigError as error:
        raise ConfigError(
            f"the plan chooses by a text (reducer {config.reducer.name!r}), and there is none: "
            "give another --plan, such as half, or, to elip show, --text"
        ) from error


def solve(
    pruner: Pruner, target_speedup: float, whole: Callable[[float], float] = lambda tower: tower
) -> ElipConfig:
    """Return the weakest pruning by the same stages that reaches a speed-up of the training step.

    `whole` gives the cost of the whole step from the tower's, both over the unpruned ones. Raises a
    PlanError if no keep ratios reach it.
    """
    if not target_speedup > 1:
        raise ConfigError(f"--target-speedup must be above 1, got {target_speedup:g}")
    costs = [whole(pruner.step_cost(pruner.plan))]
    strengths = (i * STRONGEST / STEPS for i in range(1, STEPS + 1))
    for config, planned in of_strengths(pruner, pruner.config, strengths):
        costs.append(whole(pruner.step_cost(planned)))
        if costs[-1] * target_speedup <= 1:
            return config
    raise PlanError(
        f"--target-speedup {target_speedup:g}: no keep ratios of these stages give a step as fast, "
        f"as counted: the given ones have {1 / costs[0]:.2f}, removing up to twice as much "
        f"{1 / min(costs):.2f} at most; ask for less, or give another --plan"
    )


def of_strengths(
    pruner: Pruner, config: ElipConfig, strengths: Iterable[float]
) -> Iterator[tuple[ElipConfig, Plan]]:
    """Yield the plans that remove so many times what a config's stages do, if they fit the tower.

    A strength of 1 is the config itself.
    """
    for strength in strengths:
        with suppress(ConfigError, PlanError):  # leaves no token, or its reducer fixes the ratio
            patches = pruner.shape.num_patches
            other = config if strength == 1 else _scaled(config, strength, patches)
            yield other, plan_for(pruner, other)


def plan_for(pruner: Pruner, config: ElipConfig) -> Plan:
    """Make the plan of another configuration for a pruned tower."""
    shape = pruner.shape
    return plan(config, num_patches=shape.num_patches, depth=shape.depth, prefix=shape.prefix)


def _scaled(config: ElipConfig, factor: float, patches: int) -> ElipConfig:
    """Scale what each stage removes; a stage that keeps all tokens still does."""
    stages = []
    for stage in config.stages:
        ratio = stage.keep if isinstance(stage.keep, float) else stage.keep / patches
        if ratio < 1:
            ratio = round(max(0.02, min(0.999, 1 - factor * (1 - ratio))), 4)
        stages.append(replace(stage, keep=float(ratio)))
    return replace(config, stages=tuple(stages))


def average_step(pruner: Pruner) -> float:
    """Count a tower's average step in a training with its schedule, over an unpruned step."""
    shape, total = pruner.shape, 0.0
    for level, parts in Counter(level_at(i / PARTS, pruner.config) for i in range(PARTS)).items():
        step = 1.0
        if level > 0:
            step = pruner.step_cost(pruner.plan_for(shape.num_patches, level))
        total += parts * step
    return total / PARTS
