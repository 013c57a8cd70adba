"""`elip models` and `elip plan`: what is offered, and what a plan does, without any weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from elip_plugin.patching.pruner import Pruner

BAR = 28


def models(
    host: Annotated[str, typer.Option(help="A host, such as open_clip; by default all.")] = "",
) -> None:
    """List the pruned models, and the hosts that were found."""
    from rich.console import Console
    from rich.table import Table

    from elip_plugin.cli.environment import version_of
    from elip_plugin.errors import MissingHostError
    from elip_plugin.hosts.registry import hosts, load_host

    console, table = Console(), Table("name", "prunes", "plan", "host")
    for name in [host] if host else hosts():
        try:
            found = load_host(name)
        except MissingHostError as error:
            console.print(f"{name}: {error}", highlight=False, markup=False)
            continue
        offered = found.names().values()
        version = version_of(found.distribution) or "of unknown version"
        console.print(f"{name} {version}: {len(offered)} models")
        for model in offered:
            table.add_row(model.name, model.base, model.preset, model.host)
    if table.row_count:
        console.print(table)


def plan(
    model: Annotated[str, typer.Option(help="Such as elip-ViT-B-16, or elip_blip_vqa:vqav2.")],
    preset: Annotated[str, typer.Option(help="paper or fast; by default the model's own.")] = "",
    keep: Annotated[
        str, typer.Option(help="Keep ratios of the preset's stages, such as 0.9,0.65,0.4.")
    ] = "",
    target_speedup: Annotated[
        float | None, typer.Option(help="Solve for a counted speed-up of the training step.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels of a side.")] = None,
    batch: Annotated[int, typer.Option(help="Images per batch, for the memory.")] = 128,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the config, for any host.")
    ] = None,
) -> None:
    """Show the tokens in each block, and what the plan saves, without any weights."""
    from elip_plugin.errors import ConfigError
    from elip_plugin.measure.preview import make_config, preview

    if batch < 1:
        raise ConfigError(f"batch must be 1 or more, got {batch}")
    config = make_config(preset, keep)
    pruner = preview(model, config, image_size=image_size, target_speedup=target_speedup)
    _print_plan(model, pruner, batch)
    if out is not None:
        # The `elip` section of a model config of either host: JSON is YAML too.
        out.write_text(json.dumps({"elip": pruner.config.to_mapping()}, indent=2) + "\n")
        typer.echo(f"written to {out}")


def _print_plan(name: str, pruner: Pruner, batch: int) -> None:
    """Print a plan as a table with bars."""
    from rich.console import Console
    from rich.table import Table

    plan, width = pruner.plan, pruner.shape.width
    console, full = Console(), plan.prefix + plan.num_patches
    table = Table("block", "tokens", "", "stage", title=f"{name}, {full} tokens of width {width}")
    for block, tokens in enumerate(plan.tokens):
        stage = plan.by_block.get(block)
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
            "With eval_mode 'image' this plan would be slower than no pruning: its lookahead costs "
            "more than it saves in a forward alone."
        )
