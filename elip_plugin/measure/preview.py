"""A plan on paper: tokens, operations and memory of a model that has no weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from elip_plugin.config import ElipConfig, Stage
from elip_plugin.errors import ConfigError, PlanError
from elip_plugin.hosts.registry import load_host_by_model
from elip_plugin.patching.pruner import Pruner

BAR = 28


def make_config(preset: str, keep: str) -> ElipConfig | None:
    """Read the options of `elip plan`.

    Args:
        preset: A preset's name, or "".
        keep: Comma-separated keep ratios or counts, one per stage, or "".

    Returns:
        The configuration; None where both are empty.

    Raises:
        ConfigError: If they do not fit together.
    """
    if not preset and not keep:
        return None
    config = ElipConfig.preset(preset or "paper")
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
    return replace(config, stages=tuple(Stage(s.block, s.lookahead, v) for s, v in pairs))


def preview(
    name: str,
    config: ElipConfig | None,
    *,
    image_size: int | None = None,
    target_speedup: float | None = None,
) -> Pruner:
    """Prune a model that has shapes but no weights.

    Args:
        name: A model name of either host.
        config: What to prune; None for the name's own.
        image_size: Pixels of a side; None for the model's own.
        target_speedup: If given, keep ratios are scaled until the tower's counted training
            step is that much faster.

    Returns:
        The pruner.

    Raises:
        PlanError: If no plan reaches the target.
    """
    host = load_host_by_model(name)
    pruner: Pruner = host.preview(name, config, image_size)
    if target_speedup is None:
        return pruner
    base, low, high = pruner.config, 0.0, 2.0
    best: Pruner | None = None
    for _ in range(24):
        middle = (low + high) / 2
        try:
            tried: Pruner = host.preview(name, _harder(base, middle), image_size)
            faster = 1 / tried.plan.train_cost(tried.width) >= target_speedup
        except (ConfigError, PlanError):
            # Too weak to shrink anything, or too strong to leave a token.
            faster, tried = middle > 1, pruner
        else:
            best = tried if faster else best
        low, high = (low, middle) if faster else (middle, high)
    if best is None:
        raise PlanError(
            f"no keep ratios of these stages give a counted speed-up of {target_speedup:g}; "
            f"the given ones give {1 / pruner.plan.train_cost(pruner.width):.2f}"
        )
    return best


def _harder(config: ElipConfig, factor: float) -> ElipConfig:
    """Scale what each stage removes."""
    stages = []
    for stage in config.stages:
        keep = max(0.02, min(0.999, 1 - factor * (1 - stage.keep)))
        stages.append(Stage(stage.block, stage.lookahead, round(keep, 4)))
    return replace(config, stages=tuple(stages))


def print_plan(name: str, pruner: Pruner, batch: int) -> None:
    """Print a plan as a table with bars.

    Args:
        name: The model's name.
        pruner: Its pruner.
        batch: Images per batch, for the memory.

    Raises:
        ConfigError: If the batch is below 1.
    """
    if batch < 1:
        raise ConfigError(f"batch must be 1 or more, got {batch}")
    plan, width = pruner.plan, pruner.width
    console, full = Console(), plan.prefix + plan.num_patches
    table = Table("block", "tokens", "", "stage", title=f"{name}, {full} tokens of width {width}")
    stages = {stage.block: stage for stage in plan.stages}
    for block, tokens in enumerate(plan.tokens):
        stage = stages.get(block)
        about = "" if stage is None else f"keep {stage.keep}, look ahead {stage.lookahead}"
        table.add_row(str(block), str(tokens), "█" * round(BAR * tokens / full), about)
    console.print(table)
    forward, step = plan.forward_cost(width), plan.train_cost(width)
    console.print(
        f"{plan.removed:.0%} of the token-layers removed. Of the unpruned tower, counted: forward "
        f"{forward:.2f}, training step {step:.2f} ({1 / step:.2f} times as fast), memory kept for "
        f"backward about {1 - plan.removed:.2f}: "
        f"{plan.activation_bytes(width, batch) / 2**30:.2f} GiB at batch {batch} in fp32.",
        highlight=False,
    )
    if forward >= 1:
        console.print(
            "With eval 'image' this plan would be slower than no pruning: its lookahead costs more "
            "than it saves in a forward alone."
        )


def write_config(path: Path, config: ElipConfig) -> None:
    """Write a configuration for either host.

    Args:
        path: A .yaml or .json file: the `elip` section of a LAVIS model, or of an OpenCLIP
            model config.
        config: The configuration.
    """
    # JSON is YAML too, and needs no library.
    path.write_text(json.dumps({"elip": config.to_mapping()}, indent=2) + "\n")
