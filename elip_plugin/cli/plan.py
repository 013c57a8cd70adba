"""`elip models` and `elip plan`: what is offered, and what a plan does, without any weights."""

from __future__ import annotations

import json
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
from elip_plugin.errors import ConfigError
from elip_plugin.files import write_text

if TYPE_CHECKING:
    from elip_plugin.hosts.base import HostModel
    from elip_plugin.measure.shares import Operations
    from elip_plugin.patching.pruner import Pruner
    from elip_plugin.planning import PlannedStage

BAR = 28
READS_IMAGES = "not counted, as texts read the image tokens too: elip bench speed"
NO_TEXT = "not counted: this model takes no text"
MODELS_EXAMPLES = examples("elip models", "elip models ViT-B --host open_clip")
PLAN_EXAMPLES = examples(
    "elip plan --model elip-ViT-B-16 --plan half",
    "elip plan --model elip-ViT-L-14 --target-speedup 1.4 -o plan.yaml",
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

    table = Table("model", "names that say a plan; X is the model", "host")
    for name in [host] if host else hosts():
        try:
            offered = list_names(name).values()
        except ElipError as error:  # not installed, broken, or without names
            if name not in hosts():
                raise
            typer.echo(f"{name}: {error}")
            continue
        by_base: dict[str, list[str]] = {}
        for model in offered:
            by_base.setdefault(model.base, []).append(model.name.removesuffix(model.base))
        version = version_of(hosts()[name].distribution) or "of unknown version"
        unlisted = "no list of models; its docs say how they are named"
        typer.echo(f"{name} {version}: {f'{len(by_base)} models' if by_base else unlisted}")
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
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the config, for any host: .yaml.")
    ] = None,
) -> None:
    """Show the tokens in each block, and what the plan saves, without any weights."""
    from elip_plugin.measure.preview import average_step, solve
    from elip_plugin.measure.shares import count_operations
    from elip_plugin.patching.install import find_pruner

    if out is not None:
        check_file(out, ".yaml", ".yml", ".json")
    host_model = resolve(model, plan, keep).build(image_size=image_size, device="meta")
    counted = count_operations(host_model)
    if target_speedup is not None:
        host_model.prune(solve(find_pruner(host_model.model), target_speedup, counted.step))
    pruner = find_pruner(host_model.model)
    _print_blocks(host_model)
    if pruner.config.warmup or pruner.config.final_unpruned:
        typer.echo(
            "Averaged over a training with its schedule (warmup, final_unpruned), the tower's step "
            f"is {average_step(pruner):.2f} of the unpruned one."
        )
    has_text = host_model.example_batch(1)[1] is not None
    _print_costs(pruner, counted, READS_IMAGES if has_text else NO_TEXT)
    if out is not None:
        _write(out, pruner.config.to_mapping())
        typer.echo(f"written to {out}")


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


def _print_blocks(host_model: HostModel) -> None:
    """Print the tokens in each block as a table with bars."""
    from rich.table import Table

    from elip_plugin.label import label_of
    from elip_plugin.patching.install import find_pruner

    pruner = find_pruner(host_model.model)
    plan, full = pruner.plan, pruner.plan.prefix + pruner.plan.num_patches
    title = f"{label_of(host_model)}; {full} tokens of width {pruner.shape.width}"
    table = Table("block", "tokens", "", "stage", title=title)
    for block, tokens in enumerate(plan.tokens):
        stage = plan.by_block.get(block)
        about = "" if stage is None else _describe(pruner, stage)
        table.add_row(str(block), str(tokens), "█" * round(BAR * tokens / full), about)
    print_table(table)


def _print_costs(pruner: Pruner, counted: Operations, without_text: str) -> None:
    """Print what is counted of the plan, beside no pruning, and how it is counted."""
    from rich.table import Table

    table = Table("of an image and its text")
    for name in ("unpruned", "this plan", "ratio"):
        table.add_column(name, justify="right")
    table.add_column("how it is counted")

    def add(name: str, unpruned: int, ratio: float, how: str) -> None:
        numbers = (f"{value / 1e9:.3g} GFLOP" for value in (unpruned, ratio * unpruned))
        table.add_row(name, *numbers, f"{ratio:.2f}", how)

    plan, frozen = pruner.plan, pruner.shape.frozen
    forward, tower = plan.forward_cost(pruner.shape.width), pruner.step_cost(plan)
    add("tower, forward", counted.vision, forward, "operations of blocks and of choosing")
    how = "the forward alone: this tower is frozen" if frozen else "a backward pass is two forwards"
    add("tower, training step", counted.vision_step, tower, how)
    name, tokens = "whole training step", plan.depth * (plan.prefix + plan.num_patches)
    if counted.text:
        how = f"with the text tower, {counted.share:.0%} of the unpruned step"
        add(name, counted.vision_step + counted.text_step, counted.step(tower), how)
    else:
        table.add_row(name, "-", "-", "-", without_text)
    name = "memory for backward"
    if frozen:
        table.add_row(name, "-", "-", "-", "nothing is kept: this tower is frozen")
    else:
        sizes = (f"{count} tokens" for count in (tokens, sum(plan.tokens)))
        how = "roughly: tokens in all blocks"
        table.add_row(name, *sizes, f"{1 - plan.removed:.2f}", how)
    print_table(table)
