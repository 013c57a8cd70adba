"""A plan without a model's weights, and configurations that reach a speed-up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from elip_plugin.config import DEFAULT_PRESET, ElipConfig
from elip_plugin.errors import ConfigError, PlanError
from elip_plugin.hosts.base import HostModel
from elip_plugin.hosts.registry import create
from elip_plugin.patching.install import find_pruner
from elip_plugin.patching.progress import level_at
from elip_plugin.patching.pruner import Pruner
from elip_plugin.planning import Plan, plan

STEPS, STRONGEST = 400, 2.0
"""Into how many strengths a search is cut, and the last: removing twice as much in each stage."""

PARTS = 1000
"""Into how many parts a training is cut to average its steps."""


def make_config(preset: str, keep: str) -> ElipConfig | None:
    """Read the options `--preset` and `--keep`."""
    if not preset and not keep:
        return None
    config = ElipConfig.preset(preset or DEFAULT_PRESET)
    if not keep:
        return config
    try:
        values = [float(v) if "." in v else int(v) for v in keep.split(",")]
    except ValueError:
        raise ConfigError(f"keep {keep!r}: write ratios or counts, such as 0.9,0.65,0.4") from None
    if len(values) != len(config.stages):
        raise ConfigError(
            f"keep has {len(values)} values, but the preset has {len(config.stages)} stages"
        )
    pairs = zip(config.stages, values)
    return replace(config, stages=tuple(replace(s, keep=v) for s, v in pairs))


def preview_model(
    name: str,
    config: ElipConfig | None = None,
    *,
    image_size: int | None = None,
    target_speedup: float | None = None,
) -> HostModel:
    """Build a pruned model that has shapes but no weights."""
    made = create(name, config, image_size=image_size, device="meta")
    if target_speedup is not None:
        solved = solve(find_pruner(made.model), target_speedup)
        made.prune(solved)
    return made


def solve(pruner: Pruner, target_speedup: float) -> ElipConfig:
    """Return the weakest pruning by the same stages that reaches the speed-up."""
    if not target_speedup > 1:
        raise ConfigError(f"target speed-up must be above 1, got {target_speedup:g}")
    try:
        return weakest(pruner, lambda plan: pruner.step_cost(plan) * target_speedup <= 1)
    except PlanError:
        costs = [pruner.step_cost(planned) for _, planned in _candidates(pruner)]
        given = pruner.step_cost(pruner.plan)
        raise PlanError(
            f"no keep ratios of these stages give a counted speed-up of {target_speedup:g}: the "
            f"given ones have {1 / given:.2f}, removing up to twice as much "
            f"{1 / min([given, *costs]):.2f} at most; ask for less, or give --preset or --keep"
        ) from None


def weakest(pruner: Pruner, enough: Callable[[Plan], bool]) -> ElipConfig:
    """Return the weakest pruning by the same stages that is enough; a `PlanError` if none is."""
    for config, planned in _candidates(pruner):
        if enough(planned):
            return config
    raise PlanError("no keep ratios of these stages remove enough tokens")


def _candidates(pruner: Pruner) -> Iterator[tuple[ElipConfig, Plan]]:
    """Yield the plans of the same stages that fit the tower, the weakest first."""
    for i in range(1, STEPS + 1):
        with suppress(ConfigError, PlanError):  # leaves no token, or its reducer fixes the ratio
            config = scaled(pruner.config, i * STRONGEST / STEPS, pruner.shape.num_patches)
            yield config, plan_for(pruner, config)


def plan_for(pruner: Pruner, config: ElipConfig) -> Plan:
    """Make the plan of another configuration for a pruned tower."""
    shape = pruner.shape
    return plan(config, num_patches=shape.num_patches, depth=shape.depth, prefix=shape.prefix)


def scaled(config: ElipConfig, factor: float, patches: int) -> ElipConfig:
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
