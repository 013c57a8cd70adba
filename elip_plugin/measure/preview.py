"""A plan without a model's weights, and configurations that reach a speed-up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from elip_plugin.api import apply, find_handle
from elip_plugin.config import DEFAULT_PRESET, ElipConfig
from elip_plugin.errors import ConfigError, PlanError
from elip_plugin.hosts.base import HostModel
from elip_plugin.hosts.registry import create
from elip_plugin.patching.install import find_pruner
from elip_plugin.patching.progress import level_at
from elip_plugin.patching.pruner import Pruner
from elip_plugin.planning import Plan, plan

BISECTIONS = 24
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


def preview(
    name: str,
    config: ElipConfig | None = None,
    *,
    image_size: int | None = None,
    target_speedup: float | None = None,
) -> Pruner:
    """Return the pruner of a model that has shapes but no weights."""
    made = preview_model(name, config, image_size=image_size, target_speedup=target_speedup)
    return find_pruner(made.model)


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
        find_handle(made.model).remove()
        apply(made.model, solved)
    return made


def solve(pruner: Pruner, target_speedup: float) -> ElipConfig:
    """Return the weakest pruning by the same stages that reaches the speed-up."""
    try:
        return weakest(pruner, lambda plan: pruner.step_cost(plan) * target_speedup <= 1)
    except PlanError:
        raise PlanError(
            f"no keep ratios of these stages give a counted speed-up of {target_speedup:g}; "
            f"the given ones give {1 / pruner.step_cost(pruner.plan):.2f}"
        ) from None


def weakest(pruner: Pruner, enough: Callable[[Plan], bool]) -> ElipConfig:
    """Return the weakest pruning by the same stages that is enough; a `PlanError` if none is."""
    shape, low, high = pruner.shape, 0.0, 2.0
    best: ElipConfig | None = None
    for _ in range(BISECTIONS):
        factor = (low + high) / 2
        try:
            config = _scaled(pruner.config, factor)
            planned = plan(
                config, num_patches=shape.num_patches, depth=shape.depth, prefix=shape.prefix
            )
        except (ConfigError, PlanError):
            reached = factor > 1  # too strong to leave a token, or too weak to remove one
        else:
            reached = enough(planned)
            best = config if reached else best
        low, high = (low, factor) if reached else (factor, high)
    if best is None:
        raise PlanError("no keep ratios of these stages remove enough tokens")
    return best


def _scaled(config: ElipConfig, factor: float) -> ElipConfig:
    """Scale what each stage removes."""
    stages = []
    for stage in config.stages:
        keep = max(0.02, min(0.999, 1 - factor * (1 - stage.keep)))
        stages.append(replace(stage, keep=round(keep, 4)))
    return replace(config, stages=tuple(stages))


def average_step(pruner: Pruner) -> float:
    """Count the average training step of a tower over a whole training, schedule included.

    Args:
        pruner: What prunes the tower.

    Returns:
        Multiply-adds over those of an unpruned step.
    """
    shape, total = pruner.shape, 0.0
    for level, parts in Counter(level_at(i / PARTS, pruner.config) for i in range(PARTS)).items():
        step = 1.0
        if level > 0:
            step = pruner.step_cost(pruner.plan_for(shape.num_patches, level))
        total += parts * step
    return total / PARTS
