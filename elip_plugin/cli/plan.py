"""`elip models` and `elip plan`: what is offered, and what a plan does, without any weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elip_plugin.cli.options import (
    ImageSize,
    Keep,
    Model,
    Plan,
    check_file,
    examples,
    print_table,
)
from elip_plugin.cli.target import resolve
from elip_plugin.errors import ConfigError, PlanError
from elip_plugin.files import write_text

if TYPE_CHECKING:
    from elip_plugin.hosts.base import HostModel
    from elip_plugin.patching.pruner import Pruner
    from elip_plugin.planning import Plan as MadePlan
    from elip_plugin.planning import PlannedStage

BAR = 28
READS_IMAGES = (
    "The text side of this model reads the images too, so the step beyond the vision tower depends "
    "on the plan as well: elip bench speed counts it."
)
NO_TEXT = "This model's example batch has no text, so only the vision tower is counted."
MODELS_EXAMPLES = examples("elip models", "elip models ViT-B --host open_clip")
PLAN_EXAMPLES = examples(
    "elip plan --model elip-ViT-B-16 --plan half",
    "elip plan --model elip-ViT-L-14 --target-speedup 1.4 -o plan.yaml",
    "elip plan --model elip-ViT-L-14 --memory 24GiB --batch 64",
)


def models(
    filter: Annotated[str, typer.Argument(help="A part of the models' names.")] = "",
    host: Annotated[str, typer.Option(help="A host, such as open_clip; by default all.")] = "",
) -> None:
    """List the models that can be pruned by name, the plans that names say, and the hosts."""
    from rich.table import Table

    from elip_plugin.errors import ElipError
    from elip_plugin.hosts.registry import hosts, list_names
    from elip_plugin.hosts.versions import version_of

    table = Table("model", "names that say a plan", "host")
    for name in [host] if host else hosts():
        try:
            offered = list_names(name).values()
        except ElipError as error:  # not installed, broken, or without names
            if name not in hosts():
                raise
            typer.echo(f"{name}: {error}")
            continue
        version = version_of(hosts()[name].distribution) or "of unknown version"
        by_base: dict[str, list[str]] = {}
        for model in offered:
            by_base.setdefault(model.base, []).append(model.name.removesuffix(model.base))
        typer.echo(f"{name} {version}: {len(by_base)} models")
        for base, prefixes in by_base.items():
            if filter.casefold() in base.casefold():
                # A host whose names are its models' own has one for each, with a prefix.
                named = ", ".join(prefix + "X" for prefix in prefixes)
                table.add_row(base, named, name)
    if filter and not table.row_count:
        raise ConfigError(f"no model's name has {filter!r} in it: see elip models")
    if table.row_count:
        print_table(table)


def plan(
    model: Model,
    plan: Plan = "",
    keep: Keep = "",
    target_speedup: Annotated[
        float | None, typer.Option(help="Solve for a counted speed-up of the training step.")
    ] = None,
    image_size: ImageSize = None,
    memory: Annotated[
        str, typer.Option(help="Count which batch fits a memory, such as 24GiB.")
    ] = "",
    batch: Annotated[
        int | None,
        typer.Option(help="Count the memory of this batch; with --memory, what makes it fit."),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of fp32, bf16 (autocast) and pure_bf16, for the memory.")
    ] = "fp32,bf16,pure_bf16",
    reserve: Annotated[
        str, typer.Option(help="Memory to leave for what cannot be counted.")
    ] = "1GiB",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the config, for any host: .yaml.")
    ] = None,
) -> None:
    """Show the tokens in each block, and what the plan saves, without any weights."""
    from elip_plugin.cli.memory import MemoryAsked, print_memory
    from elip_plugin.measure.shares import count_text_share, describe_text_share
    from elip_plugin.patching.install import find_pruner

    asked = MemoryAsked(memory, reserve, batch, precision)
    asked.check()
    if out is not None:
        check_file(out, ".yaml", ".yml", ".json")
    with warnings.catch_warnings():  # said below, with what would win
        warnings.filterwarnings("ignore", "(this|eval_mode 'image' with this) plan is counted")
        warnings.filterwarnings("ignore", ".* has the paper's cuts")
        target = resolve(model, plan, keep)
        host_model = target.build(image_size=image_size, device="meta")
        counted = count_text_share(host_model)
        whole = counted.step if counted else float
        if target_speedup is not None:
            _solve(host_model, target_speedup, whole)
    pruner = find_pruner(host_model.model)
    _print_plan(host_model, keep)
    if counted is None:
        no_text = host_model.example_batch(1)[1] is None
        typer.echo(NO_TEXT if no_text else READS_IMAGES)
    else:
        tower = pruner.step_cost(pruner.plan)
        typer.echo(describe_text_share(counted, tower, host_model.context_option))
        _print_recommended(pruner)  # what was measured are towers apart
    if memory or batch is not None:
        print_memory(host_model, asked, target.options)
    if out is not None:
        _write(out, pruner.config.to_mapping())
        typer.echo(f"written to {out}")


def _solve(host_model: HostModel, speedup: float, whole: Callable[[float], float]) -> None:
    """Prune a model as little as a speed-up of its training step needs."""
    from elip_plugin.measure.preview import solve
    from elip_plugin.patching.install import find_pruner

    host_model.prune(solve(find_pruner(host_model.model), speedup, whole))


def _write(out: Path, config: dict[str, Any]) -> None:
    """Write the `elip` section of a model config of any host."""
    if out.suffix == ".json":
        text = json.dumps({"elip": config}, indent=2)
    else:  # a line of YAML for each key: what JSON writes is a value of YAML
        text = "\n".join(["elip:", *(f"  {key}: {json.dumps(v)}" for key, v in config.items())])
    write_text(out, text + "\n")


def _describe(pruner: Pruner, stage: PlannedStage) -> str:
    """Describe a stage in a few words."""
    about = f"keep {stage.keep}"
    if pruner.reducer.uses_attention:
        about += f", look ahead {stage.lookahead}"
    if stage.until is not None:
        about += f", the others back at block {stage.until}"
    return about


def _print_plan(host_model: HostModel, keep: str) -> None:
    """Print a plan as a table with bars."""
    from rich.table import Table

    from elip_plugin.label import label_of
    from elip_plugin.measure.preview import average_step
    from elip_plugin.patching.install import find_pruner

    pruner = find_pruner(host_model.model)
    plan, width = pruner.plan, pruner.shape.width
    full = plan.prefix + plan.num_patches
    title = f"{label_of(host_model)}; {full} tokens of width {width}"
    table = Table("block", "tokens", "", "stage", title=title, title_justify="left")
    for block, tokens in enumerate(plan.tokens):
        stage = plan.by_block.get(block)
        about = "" if stage is None else _describe(pruner, stage)
        table.add_row(str(block), str(tokens), "█" * round(BAR * tokens / full), about)
    print_table(table)
    forward, step = plan.forward_cost(width), pruner.step_cost(plan)
    kept = f"memory kept for backward about {1 - plan.removed:.2f}"
    if pruner.shape.frozen:
        kept = "which is a forward: this tower is frozen"
    typer.echo(
        f"{plan.removed:.0%} of the tokens of all blocks removed. Of the unpruned tower, counted: "
        f"forward {forward:.2f}, training step {step:.2f} ({1 / step:.2f} times as fast), {kept}."
    )
    if pruner.config.warmup or pruner.config.final_unpruned:
        typer.echo(
            "Averaged over a training with its schedule (warmup, final_unpruned), the tower's step "
            f"is {average_step(pruner):.2f} of the unpruned one."
        )
    why = "choosing costs more than it saves"
    if step >= 1:
        others = _what_wins(pruner, keep, pruner.step_cost)
        typer.echo(f"Training by this plan is slower than no pruning: {why}. {others}")
    if forward >= 1:
        others = _what_wins(pruner, keep, lambda plan: plan.forward_cost(width))
        typer.echo(
            f"With eval_mode 'image' this plan is slower than no pruning: {why} in a forward "
            f"alone. {others}"
        )


def _print_recommended(pruner: Pruner) -> None:
    """Name the recommended preset where it costs less than the plan."""
    from elip_plugin.config import OUTSCORED, RECOMMENDED

    plan = dict(_other_plans(pruner, "")).get(f"--plan {RECOMMENDED}")
    if plan is not None and pruner.step_cost(plan) < pruner.step_cost(pruner.plan):
        typer.echo(
            f"Recommended by the quality report (docs/plans.md): --plan {RECOMMENDED}, whose "
            f"training step is {pruner.step_cost(plan):.2f} of this tower's unpruned one. "
            f"{' and '.join(OUTSCORED)} cost more and did not score higher."
        )


def _what_wins(pruner: Pruner, keep: str, cost: Callable[[MadePlan], float]) -> str:
    """Return the options of `elip plan` whose plans cost less than no pruning, as a sentence."""
    costs = {options: cost(other) for options, other in _other_plans(pruner, keep)}
    faster = [f"{options} ({value:.2f})" for options, value in costs.items() if value < 0.995]
    return f"Faster, as counted: {', '.join(faster[:3])}." if faster else "No preset is faster."


def _other_plans(pruner: Pruner, keep: str) -> Iterator[tuple[str, MadePlan]]:
    """Yield other plans for a tower by their options, those with the same keep ratios first."""
    from elip_plugin.cli.target import find_plan
    from elip_plugin.config import OUTSCORED, RECOMMENDED, TRAINING_PRESETS
    from elip_plugin.measure.preview import plan_for

    makers: dict[str, Callable[[], Any]] = {
        f"--plan {name}" + (f" --keep {ratios}" if ratios else ""): partial(find_plan, name, ratios)
        for ratios in dict.fromkeys((keep, ""))
        for name in sorted(
            TRAINING_PRESETS, key=lambda name: (name != RECOMMENDED, name in OUTSCORED)
        )
    }
    for options, make in makers.items():
        with suppress(ConfigError, PlanError):  # raised by plans that do not fit this tower
            yield options, plan_for(pruner, make())
